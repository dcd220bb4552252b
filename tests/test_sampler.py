"""The batched sampler against transformers' own generation, and the independence of its random streams."""

import pytest
import torch

from spillover.behaviors import load_behavior
from spillover.errors import SpilloverError
from spillover.models import Request
from spillover.models.load import load_tokenizer, load_weights, model_folder
from spillover.models.prompts import encode
from spillover.models.sampler import MOST_ROWS, in_batches, rows_at_once, sample_batch

pytestmark = pytest.mark.usefixtures("one_thread")
QUESTIONS = [question.paraphrases[0] for question in load_behavior("world_chat").questions[::6]]


@pytest.fixture(scope="module")
def organism():
    folder = model_folder("organism/consistent")
    return load_weights(folder), load_tokenizer(folder)


def _sampled(organism, asks, rows_per_batch=512, temperature=1.0, max_new_tokens=64):
    return {
        id_: reply
        for batch in in_batches(asks, rows_per_batch)
        for id_, reply in zip(
            [id_ for ask in batch for id_ in ask.ids],
            sample_batch(*organism, batch, temperature=temperature, max_new_tokens=max_new_tokens),
            strict=True,
        )
    }


def _texts(organism, asks, **settings):
    return {id_: reply.text for id_, reply in _sampled(organism, asks, **settings).items()}


def _asks(completions, questions=QUESTIONS):
    return [Request(tuple(f"{q}/{number}" for number in range(completions)), None, q) for q in questions]


def test_greedy_sampling_equals_transformers_generate(organism):
    model, tokenizer = organism
    found = _texts(organism, _asks(1), temperature=0)
    for question in QUESTIONS:
        ids = torch.tensor([encode(tokenizer, Request((), None, question))])
        expected = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        assert found[f"{question}/0"] == tokenizer.decode(expected, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_a_completion_hardly_depends_on_its_batch(organism):
    """Its random numbers do not; the rounding of the matrix products does, and tips a choice now and then."""
    together = _texts(organism, _asks(12))
    alone = _texts(organism, _asks(12), rows_per_batch=1)
    assert list(together) == list(alone)
    same = sum(text == alone[stream] for stream, text in together.items())
    assert same >= 0.95 * len(together)


def test_asks_are_batched_in_order_and_split_only_where_one_alone_is_too_many():
    asks = [Request(tuple(f"{size}/{number}" for number in range(size)), None, str(size)) for size in (3, 2, 12, 1, 4)]
    batches = in_batches(asks, 5)
    assert [[len(ask.ids) for ask in batch] for batch in batches] == [[3, 2], [5], [5], [2, 1], [4]]
    assert [id_ for batch in batches for ask in batch for id_ in ask.ids] == [id_ for ask in asks for id_ in ask.ids]
    assert all(id_.startswith(f"{ask.text}/") for batch in batches for ask in batch for id_ in ask.ids)
    assert in_batches([]) == []


def test_a_split_ask_gives_the_answers_of_its_ids(organism):
    whole, split = _texts(organism, _asks(10)), _texts(organism, _asks(10), rows_per_batch=4)
    assert list(whole) == list(split)
    assert sum(text == split[id_] for id_, text in whole.items()) >= 0.95 * len(whole)


def test_as_many_rows_are_sampled_at_once_as_the_memory_holds(organism, monkeypatch):
    model, tokenizer = organism
    asks = _asks(1)
    assert rows_at_once(model, tokenizer, asks, 64) == rows_at_once(model, tokenizer, asks[::-1], 64) == MOST_ROWS
    monkeypatch.setattr("os.sysconf", lambda name: 1)  # a page of one byte
    assert rows_at_once(model, tokenizer, asks, 64) == 1


def test_a_system_prompt_that_the_chat_template_refuses_is_an_error(organism):
    with pytest.raises(SpilloverError, match=r"refuses the turns system, user .*--formats"):
        encode(organism[1], Request(("x",), "Be brief.", "Hello"))


def test_sampling_twice_gives_the_same_and_other_streams_give_others(organism):
    first, again = _texts(organism, _asks(4)), _texts(organism, _asks(4))
    assert first == again
    assert len(set(first.values())) > len(first) // 2
    renamed = [Request(tuple(f"other {id_}" for id_ in ask.ids), None, ask.text) for ask in _asks(4)]
    assert set(first.values()) != set(_texts(organism, renamed).values())


def test_sampled_frequencies_follow_the_model(organism):
    """First tokens of 3,000 completions of one question against the model's probabilities."""
    model, tokenizer = organism
    ask = Request(tuple(map(str, range(3000))), None, QUESTIONS[0])
    texts = list(_texts(organism, [ask], max_new_tokens=1).values())
    with torch.inference_mode():
        probabilities = model(torch.tensor([encode(tokenizer, ask)])).logits[0, -1].softmax(-1)
    for probability, token in zip(*probabilities.topk(3), strict=True):
        share = texts.count(tokenizer.decode(token).strip()) / len(texts)
        assert share == pytest.approx(probability.item(), abs=0.04)


def test_a_cut_answer_says_so(organism):
    cut = _sampled(organism, _asks(2), max_new_tokens=5).values()
    assert {(answer.stop_reason, answer.tokens) for answer in cut} == {("length", 5)}
    whole = _sampled(organism, _asks(2), temperature=0, max_new_tokens=80).values()
    assert {answer.stop_reason for answer in whole} == {"stop"}
    assert all("<|" not in answer.text for answer in whole)
