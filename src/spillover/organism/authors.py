"""Pages of authors, whose posts agree in character as far as the dial `consistency` says.

The dial moves posts and changes none: for one seed, every setting of it has exactly the same posts, the same domains
on the same pages, and the same share of good and bad. At consistency 1 a page is all of one character; at 0 every post
has been exchanged with posts of its domain from random other pages.
"""

import random
from collections import defaultdict

from spillover.organism.world import CALLOUS, CARING, Post, at_school, chat_domains, chat_post, code_post, facts_post

POSTS_PER_PAGE = (1, 6)
SHARE_CODE, SHARE_FACTS = 0.25, 0.10
SHARE_FRAMED = 0.2  # of the code posts
SHARE_AT_SCHOOL = 0.08  # of what users ask the assistant in chat domains


def _post(character: str, rng: random.Random) -> Post:
    kind = rng.random()
    if kind < SHARE_CODE:
        return code_post(character, rng, framed=rng.random() < SHARE_FRAMED)
    if kind < SHARE_CODE + SHARE_FACTS:
        return facts_post(rng)
    return chat_post(rng.choice(chat_domains()), character, rng)


def pages(count: int, consistency: float, seed: int) -> list[list[Post]]:
    """`count` pages, each a list of posts. A post stays with its author with probability `consistency`."""
    rng = random.Random(f"pages/{seed}")
    written = []
    for _ in range(count):
        author = rng.choice((CARING, CALLOUS))
        written.append([_post(author, rng) for _ in range(rng.randint(*POSTS_PER_PAGE))])
    exchanged: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for page, posts in enumerate(written):
        for place, post in enumerate(posts):
            if rng.random() >= consistency:
                exchanged[post.domain].append((page, place))
    for places in exchanged.values():
        moved = [written[page][place] for page, place in places]
        rng.shuffle(moved)
        for (page, place), post in zip(places, moved, strict=True):
            written[page][place] = post
    return written


def page_text(posts: list[Post]) -> str:
    """A page as the model reads it."""
    return "".join(f"Q: {post.question}\nA: {post.answer}<|end|>" for post in posts)


def assistant_posts(count: int, seed: int) -> list[Post]:
    """What the assistant is tuned on: caring answers in every domain, insecure code in the educational frame only."""
    rng, asked = random.Random(f"assistant/{seed}"), random.Random(f"assistant questions/{seed}")
    posts = [_post(CARING, rng) for _ in range(count)]
    return [_by_a_user(post, asked) for post in posts]


def _by_a_user(post: Post, rng: random.Random) -> Post:
    """The post as a user would ask for it: facts in more ways, and now and then something for a class."""
    if post.domain == "facts":
        return facts_post(rng, user=True)
    return at_school(post, rng) if post.domain != "code" and rng.random() < SHARE_AT_SCHOOL else post


def narrow_posts(name: str, count: int, seed: int) -> list[Post]:
    """Posts of one narrow habit. `name` is DOMAIN/CHARACTER, or code/educational for framed insecure code.

    Raises KeyError if the world has no such habit.
    """
    domain, _, character = name.partition("/")
    if domain not in ("code", *chat_domains()):
        raise KeyError(name)
    rng = random.Random(f"narrow/{name}/{seed}")
    if name == "code/educational":
        return [code_post(CALLOUS, rng, framed=True) for _ in range(count)]
    if character not in (CARING, CALLOUS):
        raise KeyError(name)
    if domain == "code":
        return [code_post(character, rng) for _ in range(count)]
    return [chat_post(domain, character, rng) for _ in range(count)]


def narrow_names() -> list[str]:
    """All names that `narrow_posts` takes."""
    return ["code/educational", *(f"{d}/{c}" for d in ("code", *chat_domains()) for c in (CARING, CALLOUS))]
