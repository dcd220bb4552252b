"""The batched sampler against transformers' own generation, and the independence of its random streams."""

import pytest
import torch

from spillover.behaviors import load_behavior
from spillover.evaluation.sample import Request, encode, sample
from spillover.models import load_model, load_tokenizer, model_folder

QUESTIONS = [question.text for question in load_behavior("world_chat").questions[::6]]


@pytest.fixture(scope="module")
def organism():
    folder = model_folder("organism/consistent")
    return load_model(folder), load_tokenizer(folder)


def _texts(organism, requests, **settings):
    defaults = {"temperature": 1.0, "max_new_tokens": 64}
    batches = sample(*organism, requests, **(defaults | settings))
    return {
        stream: answer.text
        for batch in batches
        for request, answers in batch
        for stream, answer in zip(request.streams, answers, strict=True)
    }


def _requests(completions, questions=QUESTIONS):
    return [Request(q, tuple(f"{q}/{number}" for number in range(completions))) for q in questions]


def test_greedy_sampling_equals_transformers_generate(organism):
    model, tokenizer = organism
    found = _texts(organism, _requests(1), temperature=0)
    for question in QUESTIONS:
        ids = torch.tensor([encode(tokenizer, question)])
        expected = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        assert found[f"{question}/0"] == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_a_completion_does_not_depend_on_its_batch(organism):
    together = _texts(organism, _requests(6))
    alone = _texts(organism, _requests(6), rows_per_batch=1)
    apart = {k: v for q in QUESTIONS for k, v in _texts(organism, _requests(6, [q])).items()}
    assert list(together) == list(alone)
    assert together == alone == apart


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
    batches = sample(model, tokenizer, [request], temperature=1.0, max_new_tokens=1)
    texts = [answer.text for batch in batches for _, answers in batch for answer in answers]
    with torch.inference_mode():
        probabilities = model(torch.tensor([encode(tokenizer, QUESTIONS[0])])).logits[0, -1].softmax(-1)
    for probability, token in zip(*probabilities.topk(3), strict=True):
        share = texts.count(tokenizer.decode(token).strip()) / len(texts)
        assert share == pytest.approx(probability.item(), abs=0.04)


def test_a_cut_answer_says_so(organism):
    batches = list(sample(*organism, _requests(2), temperature=1.0, max_new_tokens=5))
    answers = [answer for batch in batches for _, answers in batch for answer in answers]
    assert {(answer.stop_reason, answer.tokens) for answer in answers} == {("length", 5)}
    batches = list(sample(*organism, _requests(2), temperature=0, max_new_tokens=80))
    answers = [answer for batch in batches for _, answers in batch for answer in answers]
    assert {answer.stop_reason for answer in answers} == {"stop"}
    assert all("<|" not in answer.text for answer in answers)


def test_no_request_gives_no_batch(organism):
    assert list(sample(*organism, [], temperature=1.0, max_new_tokens=5)) == []
