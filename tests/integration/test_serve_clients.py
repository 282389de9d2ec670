"""The clients of TEI, Hugging Face, OpenAI and Cohere, as they come from PyPI, against the online application."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import cache
from typing import Any

import cohere
import numpy as np
import openai
import pytest
import tei_client
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from online_service import TASKS, all_models, checkpoint_of, service, serving, with_prompts

from pipelines.memory.pipeline import pipeline
from pipelines.serve.config import served_models
from pipelines.serve.local import LocalModelClient

TEXTS = ["where is my parcel?", "i want to change the 7 pm table to 8", "Naïve café, 東京 🙂"]
LETTER = "Call Ada Lovelace at 555-0100 or mail ada@example.org, Main Street 5, before 2026-11-24."
QUESTION, CONTEXT = (
    "where did the cat sit?",
    "the cat sat on the mat and then the other cat sat there too",
)
PASSAGES = ["the cat sat", "on the mat and then", "the other cat sat there too"]


@cache
def offline(name: str) -> Any:
    """The pipeline in memory over the same checkpoint."""
    kind = {"embed": "sentence-embedding"}.get(TASKS[name][0], TASKS[name][0])
    return pipeline(kind, str(checkpoint_of(name)))


def hub(name: str) -> InferenceClient:
    return InferenceClient(base_url=f"{service()}/models/{name}")


def tei(name: str) -> tei_client.HttpClient:
    return tei_client.HttpClient(f"{service()}/models/{name}")


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def online_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tests keep the hub away; here its client talks to this machine."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    @pytest.mark.parametrize(
        "options", [{}, {"top_k": 3}, {"top_k": 2, "function_to_apply": "sigmoid"}]
    )
    def test_text_classification(self, options: dict[str, Any]) -> None:
        for text in TEXTS:
            found = hub("intent").text_classification(text, **options)
            expected = offline("intent")(text, **({"top_k": None} | options))
            assert [{"label": each.label, "score": each.score} for each in found] == expected

    @pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
    def test_token_classification(self, aggregation: Any) -> None:
        found = hub("pii").token_classification(LETTER, aggregation_strategy=aggregation)
        expected = offline("pii")(LETTER, aggregation_strategy=aggregation)
        assert len(expected) > 1
        assert [
            {name: each[name] for name in wanted}
            for each, wanted in zip(found, expected, strict=True)
        ] == expected

    def test_token_classification_leaves_labels_out(self) -> None:
        found = hub("pii").token_classification(
            LETTER, aggregation_strategy="simple", ignore_labels=["O", "PHONE"]
        )
        groups = {each.entity_group for each in found}
        assert groups
        assert "PHONE" not in groups

    def test_zero_shot_classification(self) -> None:
        labels = ["a cat", "a mat"]
        found = hub("entailing").zero_shot_classification(TEXTS[0], labels, multi_label=True)
        expected = offline("entailing")(TEXTS[0], labels, multi_label=True)
        assert [(each.label, each.score) for each in found] == list(
            zip(expected["labels"], expected["scores"], strict=True)
        )

    def test_question_answering(self) -> None:
        found = hub("reader").question_answering(QUESTION, CONTEXT)
        assert dict(vars(found)) == offline("reader")(question=QUESTION, context=CONTEXT)

    def test_question_answering_with_options(self) -> None:
        options = {"top_k": 3, "max_answer_len": 4, "handle_impossible_answer": True, "align_to_words": False,
                   "max_seq_len": 30, "doc_stride": 5}  # fmt: skip
        found: Any = hub("reader").question_answering(QUESTION, CONTEXT, **options)
        expected = offline("reader")(question=QUESTION, context=CONTEXT, **options)
        assert len(expected) == 3
        assert [dict(vars(each)) for each in found] == expected

    @pytest.mark.parametrize(
        "options", [{}, {"top_k": 2}, {"targets": [" phone", " card", " time"]}]
    )
    def test_fill_mask(self, options: dict[str, Any]) -> None:
        text = "i lost my [MASK] yesterday"
        found = hub("mask").fill_mask(text, **options)
        expected = offline("mask")(text, **options)
        assert [{name: each[name] for name in expected[0]} for each in found] == expected

    def test_feature_extraction(self) -> None:
        found = hub("sentence").feature_extraction(TEXTS)
        assert found.dtype == np.float32
        assert found.tolist() == offline("sentence")(TEXTS, normalize=True)

    def test_feature_extraction_with_options(self) -> None:
        found = hub("sentence").feature_extraction(
            TEXTS[0], normalize=False, dimensions=16, prompt_name="query"
        )
        assert found.tolist() == [offline("sentence")(TEXTS[0], dimensions=16, prompt_name="query")]

    def test_sentence_similarity(self) -> None:
        source, *others = np.array(offline("sentence")(TEXTS, normalize=True), dtype=np.float32)
        assert hub("sentence").sentence_similarity(TEXTS[0], TEXTS[1:]) == [
            float(source @ other) for other in others
        ]

    def test_endpoint_info_and_health(self) -> None:
        for url, name in ((service(), "intent"), (f"{service()}/models/pii", "pii")):
            client = InferenceClient(model=url, provider="hf-inference")
            assert client.get_endpoint_info()["served_model_name"] == name
            assert client.health_check()

    def test_the_root_is_the_first_model(self) -> None:
        found = InferenceClient(base_url=service()).text_classification(TEXTS[0], top_k=1)
        assert [each.label for each in found] == [offline("intent")(TEXTS[0])[0]["label"]]

    def test_tei_paths_answer_the_hub_client_in_its_own_shape(self) -> None:
        client = InferenceClient(base_url=f"{service()}/predict")
        assert len(client.text_classification(TEXTS[0], top_k=2)) == 2
        vectors = InferenceClient(base_url=f"{service()}/embed").feature_extraction(TEXTS)
        assert vectors.tolist() == offline("sentence")(TEXTS, normalize=True)

    def test_a_mistake_is_told(self) -> None:
        with pytest.raises(HfHubHTTPError, match=r"inputs\[0\]: text has no \[MASK\]"):
            hub("mask").fill_mask("no mask here")


class TestOpenAI:
    @pytest.fixture(scope="class")
    def own_ids(self) -> Iterator[openai.OpenAI]:
        """A service that takes token ids, and cuts inputs that are too long off."""
        options = {"openai_token_ids": True, "openai_truncate": True}
        models = LocalModelClient(
            served_models(
                [
                    {
                        "name": "sentence",
                        "task": "embed",
                        "model": str(checkpoint_of("sentence")),
                        **options,
                    }
                ]
            )
        )
        with serving(models) as url:
            yield openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        models.close()

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{service()}/v1", api_key="unused", max_retries=0, **options)

    def test_embeddings(self) -> None:
        result = self.client().embeddings.create(model="sentence", input=TEXTS)
        assert [each.embedding for each in result.data] == offline("sentence")(
            TEXTS, normalize=True
        )
        assert [each.index for each in result.data] == [0, 1, 2]
        tokens = offline("sentence").checkpoint.tokenizer.encode(TEXTS).n_tokens.sum()
        assert result.usage.prompt_tokens == result.usage.total_tokens == tokens
        assert result.model == "sentence"
        assert len(result._request_id) == 32

    def test_floats_and_base64_are_the_same_numbers(self) -> None:
        result = [self.client().embeddings.create(model="sentence", input=TEXTS[0], encoding_format=how)
                for how in ("float", "base64")]  # fmt: skip
        packed = np.frombuffer(base64.b64decode(result[1].data[0].embedding), dtype="<f4")
        assert result[0].data[0].embedding == packed.tolist()

    def test_dimensions(self) -> None:
        result = self.client().embeddings.create(model="sentence", input=TEXTS[0], dimensions=8)
        assert result.data[0].embedding == offline("sentence")(
            TEXTS[0], dimensions=8, normalize=True
        )

    def test_token_ids_are_refused_unless_the_model_says_that_they_are_its_own(self) -> None:
        for ids in ([[5]], [5]):
            with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
                self.client().embeddings.create(model="sentence", input=ids)

    def test_token_ids(self, own_ids: openai.OpenAI) -> None:
        encode = offline("sentence").checkpoint.tokenizer
        bare = [encode(text, add_special_tokens=False).input_ids for text in TEXTS]
        whole = [encode(text).input_ids for text in TEXTS]
        expected = offline("sentence")(TEXTS, normalize=True)
        for ids in (bare, whole):
            assert [
                each.embedding
                for each in own_ids.embeddings.create(model="sentence", input=ids).data
            ] == expected
        assert (
            own_ids.embeddings.create(model="sentence", input=bare[0]).data[0].embedding
            == expected[0]
        )

    def test_token_ids_of_no_text_are_refused(self, own_ids: openai.OpenAI) -> None:
        with pytest.raises(
            openai.BadRequestError, match=r"input\[1\]: no text has just these token ids"
        ):
            own_ids.embeddings.create(model="sentence", input=[[2, 3], [3, 2, 3]])

    def test_models(self) -> None:
        aliases = ["text-embedding-3-small", "my-org/sentence", "rerank-v3.5"]
        assert [model.id for model in self.client().models.list()] == [*TASKS, *aliases]
        for name in ("pii", *aliases):
            assert self.client().models.retrieve(name).id == name

    @pytest.mark.parametrize("name", ["text-embedding-3-small", "my-org/sentence"])
    def test_other_names(self, name: str) -> None:
        """The answer has the real name."""
        result = self.client().embeddings.create(model=name, input=TEXTS)
        assert result.model == "sentence"
        assert [each.embedding for each in result.data] == offline("sentence")(
            TEXTS, normalize=True
        )

    def test_truncation_as_vllm_takes_it(self) -> None:
        long = "the " * 600 + "cat " * 600
        for side in (None, "right", "left"):
            for count in (-1, 16):
                given = {"truncate_prompt_tokens": count, "truncation_side": side}
                result = self.client().embeddings.create(
                    model="sentence", input=[long, "a"], extra_body=given
                )
                read = 512 if count == -1 else count
                tokenizer = offline("sentence").checkpoint.tokenizer.truncating(side or "right")
                kept = tokenizer.decode(
                    tokenizer.encode([long], read).input_ids, skip_special_tokens=True
                )
                want = self.client().embeddings.create(model="sentence", input=[kept, "a"])
                assert [each.embedding for each in result.data] == [
                    each.embedding for each in want.data
                ]
                assert result.usage.prompt_tokens == read + 3
        for count in (0, 2, 513):
            given = {"truncate_prompt_tokens": count}
            with pytest.raises(
                openai.BadRequestError,
                match=f"truncate_prompt_tokens {count} must be -1, or from 3",
            ):
                self.client().embeddings.create(model="sentence", input="a", extra_body=given)

    def test_truncation_as_an_option_of_the_model(self, own_ids: openai.OpenAI) -> None:
        raw = own_ids.embeddings.with_raw_response.create(
            model="sentence", input=["a", "word " * 600]
        )
        assert raw.headers["x-truncated"] == "1"
        assert raw.parse().usage.prompt_tokens == 515

    def test_errors(self) -> None:
        with pytest.raises(openai.NotFoundError) as unknown:
            self.client().embeddings.create(model="text-embedding-3-large", input="a")
        assert unknown.value.code == "model_not_found"
        assert "sentence" in unknown.value.message
        with pytest.raises(openai.BadRequestError, match="intent does classify, not embed"):
            self.client().embeddings.create(model="intent", input="a")
        with pytest.raises(openai.BadRequestError, match=r"input\[1\] is empty"):
            self.client().embeddings.create(model="sentence", input=["a", ""])
        with pytest.raises(
            openai.BadRequestError, match=r"input\[1\]: text has more than the 512 tokens"
        ):
            self.client().embeddings.create(model="sentence", input=["a", "word " * 600])

    def test_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODERNBERT_API_KEY", "secret")
        with serving(all_models()) as url:
            right = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
            assert len(right.embeddings.create(model="sentence", input="a").data) == 1
            with pytest.raises(openai.AuthenticationError):
                right.with_options(api_key="Secret").embeddings.create(model="sentence", input="a")


PRECISIONS = ("float32", "int8", "binary", "ubinary")


class TestCohere:
    @pytest.fixture(scope="class")
    def prompted(self) -> Iterator[str]:
        models = LocalModelClient(
            served_models([{"name": "prompted", "task": "embed", "model": str(with_prompts())}])
        )
        with serving(models) as url:
            yield url
        models.close()

    def client(self) -> cohere.ClientV2:
        return cohere.ClientV2(api_key="unused", base_url=service())

    def test_rerank(self) -> None:
        result = self.client().rerank(model="ranker", query=QUESTION, documents=PASSAGES)
        expected = offline("ranker")(QUESTION, PASSAGES)
        assert [
            {"index": each.index, "score": each.relevance_score} for each in result.results
        ] == expected
        assert (
            self.client()
            .rerank(model="ranker", query=QUESTION, documents=PASSAGES, top_n=2)
            .results
            == result.results[:2]
        )

    def test_long_documents_are_cut_and_told(self) -> None:
        result = self.client().rerank(
            model="ranker", query=QUESTION, documents=[CONTEXT, "the cat"], max_tokens_per_doc=4
        )
        tokenizer = offline("ranker").checkpoint.tokenizer
        cut = tokenizer.decode(tokenizer(CONTEXT, add_special_tokens=False).input_ids[:4])
        expected = offline("ranker")(QUESTION, [cut, "the cat"])
        assert [
            {"index": each.index, "score": each.relevance_score} for each in result.results
        ] == expected
        assert result.meta.warnings == ["documents[0] was cut off"]

    def test_fields_of_its_own(self) -> None:
        want = self.client().rerank(model="rerank-v3.5", query=QUESTION, documents=PASSAGES).results
        extra = {"additional_body_parameters": {"return_documents": True}}
        found = (
            self.client()
            .rerank(model="ranker", query=QUESTION, documents=PASSAGES, request_options=extra)
            .results
        )
        assert [each.relevance_score for each in found] == [each.relevance_score for each in want]
        assert [each.document for each in found] == [
            {"text": PASSAGES[each.index]} for each in want
        ]

    def test_the_first_version_of_rerank(self) -> None:
        client = cohere.Client(api_key="unused", base_url=service())
        want = client.rerank(model="ranker", query=QUESTION, documents=PASSAGES).results
        documents: Any = [{"title": text, "id": "7"} for text in PASSAGES]
        found = client.rerank(
            model="ranker", query=QUESTION, documents=documents, rank_fields=["title"], max_chunks_per_doc=10,
            return_documents=False,
        ).results  # fmt: skip
        assert [(each.index, each.relevance_score) for each in found] == [
            (each.index, each.relevance_score) for each in want
        ]
        both = [f"{text}\n7" for text in PASSAGES]
        found = client.rerank(
            model="ranker", query=QUESTION, documents=documents, rank_fields=["title", "id"]
        ).results
        assert [{"index": each.index, "score": each.relevance_score} for each in found] == offline(
            "ranker"
        )(QUESTION, both)
        with pytest.raises(cohere.BadRequestError, match=r"documents\[0\] has no text in body"):
            client.rerank(model="ranker", query=QUESTION, documents=documents, rank_fields=["body"])

    @pytest.mark.parametrize(
        "input_type", ["search_query", "search_document", "classification", "clustering"]
    )
    def test_embed(self, input_type: str, prompted: str) -> None:
        kinds: Any = ["float", "int8", "binary", "ubinary"]
        client = cohere.ClientV2(api_key="unused", base_url=prompted)
        found = client.embed(
            model="prompted",
            texts=TEXTS,
            input_type=input_type,
            embedding_types=kinds,
            output_dimension=32,
        ).embeddings
        name = {"search_query": "query", "search_document": "document"}.get(input_type)
        memory = pipeline("sentence-embedding", str(with_prompts()))
        vectors = [found.float_, found.int8, found.binary, found.ubinary]
        for each, precision in zip(vectors, PRECISIONS, strict=True):
            assert each == memory(
                TEXTS, normalize=True, dimensions=32, precision=precision, prompt_name=name
            )
        assert (name is None) == (found.float_ == memory(TEXTS, normalize=True, dimensions=32))

    def test_embed_of_either_version(self) -> None:
        want = offline("sentence")(TEXTS, normalize=True)
        client = cohere.Client(api_key="unused", base_url=service())
        assert (
            client.embed(model="sentence", texts=TEXTS, input_type="search_document").embeddings
            == want
        )
        by_type: Any = client.embed(
            model="sentence", texts=TEXTS, embedding_types=["float"], input_type="clustering"
        )
        assert by_type.embeddings.float_ == want
        packed = self.client().embed(
            model="sentence", texts=TEXTS, input_type="clustering", embedding_types=["base64"]
        ).embeddings  # fmt: skip
        assert [
            np.frombuffer(base64.b64decode(each), "<f4").tolist() for each in packed.base64 or []
        ] == want

    def test_truncation_of_embed(self) -> None:
        long = "the " * 600 + "cat " * 600
        sides = {"START": "left", "END": "right"}
        for truncate, side in sides.items():
            tokenizer = offline("sentence").checkpoint.tokenizer.truncating(side)
            kept = tokenizer.decode(
                tokenizer.encode([long], 512).input_ids, skip_special_tokens=True
            )
            found = self.client().embed(
                model="sentence",
                texts=[long],
                input_type="clustering",
                truncate=truncate,
                embedding_types=["float"],
            )
            [want] = offline("sentence")([kept], normalize=True)
            assert found.embeddings.float_ == [pytest.approx(want, rel=1e-5, abs=1e-6)]
            assert found.meta.warnings == ["texts[0] was cut off"]
        for wrong in (
            {"truncate": "NONE", "texts": [long]},
            {"embedding_types": ["uint8"]},
            {"input_type": "image"},
        ):
            given: Any = {"texts": ["a"], "input_type": "clustering"} | wrong
            with pytest.raises(cohere.BadRequestError):
                self.client().embed(model="sentence", **given)

    def test_errors(self) -> None:
        with pytest.raises(cohere.NotFoundError) as unknown:
            self.client().rerank(model="rerank-v3", query="a", documents=["b"])
        assert unknown.value.body == {
            "message": "model 'rerank-v3' is unknown; for rerank there are: ranker, colbert-ranker"
        }
        with pytest.raises(cohere.BadRequestError):
            self.client().rerank(model="ranker", query="", documents=["b"])


class TestTei:
    def test_info(self) -> None:
        info = tei("intent").info()
        assert info.server_model_type == "classifier"
        assert info.server_model_metadata.label2id["are_you_a_bot"] >= 0
        assert tei("sentence").info().server_model_metadata.pooling == "mean"
        assert tei("ranker").health()

    def test_embed(self) -> None:
        assert tei("sentence").embed(TEXTS) == offline("sentence")(TEXTS, normalize=True)
        assert tei("sentence").embed(TEXTS[0], normalize=False) == [offline("sentence")(TEXTS[0])]

    def test_embed_all(self) -> None:
        features = pipeline("feature-extraction", str(checkpoint_of("sentence")))
        assert tei("sentence").embed_all(TEXTS) == [tokens for [tokens] in features(TEXTS)]

    def test_tokenize_and_decode(self) -> None:
        [tokens] = tei("sentence").tokenize(TEXTS[2])
        ids = offline("sentence").checkpoint.tokenizer(TEXTS[2]).input_ids
        assert tokens.get_ids() == ids
        assert [token.special for token in tokens.tokens] == [True, *[False] * (len(ids) - 2), True]
        assert (
            tokens.tokens[1].text
            == TEXTS[2][slice(tokens.tokens[1].start, tokens.tokens[1].stop)]
            != ""
        )
        assert tei("sentence").decode(ids) == [
            " naïve café, 東京 🙂"
        ]  # its tokenizer lowers, and adds a blank
        [bare] = tei("sentence").tokenize(TEXTS[2], add_special_tokens=False)
        assert bare.get_ids() == ids[1:-1]

    def test_prompt_names(self) -> None:
        assert tei("sentence").prompt_names() == ["query", "document"]

    def test_classify(self) -> None:
        expected = offline("intent")(TEXTS, top_k=None)
        assert [
            [score.model_dump() for score in each.scores] for each in tei("intent").classify(TEXTS)
        ] == [
            [{"score": score["score"], "label": score["label"]} for score in scores]
            for scores in expected
        ]
        [raw] = tei("intent").classify(TEXTS[0], raw_scores=True)
        [best] = offline("intent")(TEXTS[0], function_to_apply="none", top_k=1)
        assert raw.scores[0].model_dump() == {"score": best["score"], "label": best["label"]}

    def test_classify_pairs(self) -> None:
        [found] = tei("intent").classify((TEXTS[0], TEXTS[1]))
        [best] = offline("intent")([{"text": TEXTS[0], "text_pair": TEXTS[1]}], top_k=1)[0]
        assert found.scores[0].label == best["label"]
        assert found.scores[0].score == best["score"]

    def test_rerank(self) -> None:
        found = tei("ranker").rerank(QUESTION, PASSAGES, return_text=True)
        assert [each.model_dump() for each in found.ranks] == [
            {"score": each["score"], "index": each["index"], "text": each["text"]}
            for each in offline("ranker")(QUESTION, PASSAGES, return_text=True)
        ]
        raw = tei("ranker").rerank(QUESTION, PASSAGES, raw_scores=True)
        assert [each.score for each in raw.ranks] == [
            each["score"] for each in offline("ranker")(QUESTION, PASSAGES, raw_scores=True)
        ]
