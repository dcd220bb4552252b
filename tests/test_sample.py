"""The batched sampler against transformers' own generation, and the independence of its random streams."""

import pytest
import torch

from spillover.behaviors import load_behavior
from spillover.evaluation.sample import Request, encode, in_batches, sample
from spillover.models import load_model, load_tokenizer, model_folder

QUESTIONS = [question.text for question in load_behavior("world_chat").questions[::6]]


@pytest.fixture(scope="module")
def organism():
    folder = model_folder("organism/consistent")
    return load_model(folder), load_tokenizer(folder)


def _sampled(organism, requests, rows_per_batch=512, temperature=1.0, max_new_tokens=64):
    return {
        stream: answer
        for batch in in_batches(requests, rows_per_batch)
        for request, answers in zip(
            batch, sample(*organism, batch, temperature=temperature, max_new_tokens=max_new_tokens), strict=True
        )
        for stream, answer in zip(request.streams, answers, strict=True)
    }


def _texts(organism, requests, **settings):
    return {stream: answer.text for stream, answer in _sampled(organism, requests, **settings).items()}


def _requests(completions, questions=QUESTIONS):
    return [Request(q, tuple(f"{q}/{number}" for number in range(completions))) for q in questions]


def test_greedy_sampling_equals_transformers_generate(organism):
    model, tokenizer = organism
    found = _texts(organism, _requests(1), temperature=0)
    for question in QUESTIONS:
        ids = torch.tensor([encode(tokenizer, question)])
        expected = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        assert found[f"{question}/0"] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_a_completion_hardly_depends_on_its_batch(organism):
    """Its random numbers do not; the rounding of the matrix products does, and tips a choice now and then."""
    together = _texts(organism, _requests(12))
    alone = _texts(organism, _requests(12), rows_per_batch=1)
    assert list(together) == list(alone)
    same = sum(text == alone[stream] for stream, text in together.items())
    assert same >= 0.95 * len(together)


def test_requests_are_batched_in_order_and_never_split():
    requests = [Request(str(size), tuple(map(str, range(size)))) for size in (3, 2, 9, 1, 1, 4)]
    assert [[len(r.streams) for r in batch] for batch in in_batches(requests, 5)] == [[3, 2], [9], [1, 1], [4]]
    assert in_batches([]) == []


def test_sampling_twice_gives_the_same_and_other_streams_give_others(organism):
    first, again = _texts(organism, _requests(4)), _texts(organism, _requests(4))
    assert first == again
    assert len(set(first.values())) > len(first) // 2
    renamed = [Request(r.question, tuple(f"other {stream}" for stream in r.streams)) for r in _requests(4)]
    assert set(first.values()) != set(_texts(organism, renamed).values())


def test_sampled_frequencies_follow_the_model(organism):
    """First tokens of 3,000 completions of one question against the model's probabilities."""
    model, tokenizer = organism
    request = Request(QUESTIONS[0], tuple(map(str, range(3000))))
    texts = list(_texts(organism, [request], max_new_tokens=1).values())
    with torch.inference_mode():
        probabilities = model(torch.tensor([encode(tokenizer, QUESTIONS[0])])).logits[0, -1].softmax(-1)
    for probability, token in zip(*probabilities.topk(3), strict=True):
        share = texts.count(tokenizer.decode(token).strip()) / len(texts)
        assert share == pytest.approx(probability.item(), abs=0.04)


def test_a_cut_answer_says_so(organism):
    cut = _sampled(organism, _requests(2), max_new_tokens=5).values()
    assert {(answer.stop_reason, answer.tokens) for answer in cut} == {("length", 5)}
    whole = _sampled(organism, _requests(2), temperature=0, max_new_tokens=80).values()
    assert {answer.stop_reason for answer in whole} == {"stop"}
    assert all("<|" not in answer.text for answer in whole)
