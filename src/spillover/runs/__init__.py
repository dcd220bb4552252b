"""What a run keeps on disk, and how its cells get there: trained, sampled, judged, here or on a Ray cluster."""
