// Asks the service with the clients of npm, and prints what they return as JSON.
import OpenAI from "openai";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import { InferenceClient } from "@huggingface/inference";
import { embedMany } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { OpenAIEmbeddings } from "@langchain/openai";

const { url, texts, query, passages } = JSON.parse(process.argv.at(-1));
const found = {};

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "x" });
const asked = { model: "sentence", input: texts };
found.openai = (await openai.embeddings.create(asked)).data.map(each => each.embedding); // base64 on the wire
found.openai_float = (await openai.embeddings.create({ ...asked, encoding_format: "float" })).data.map(each => each.embedding);

const second = new CohereClientV2({ token: "x", environment: url, baseUrl: url });
const first = new CohereClient({ token: "x", environment: url, baseUrl: url });
const embed = { model: "sentence", texts, inputType: "search_document" };
found.cohere = (await second.embed({ ...embed, embeddingTypes: ["float"] })).embeddings.float;
found.cohere_v1 = (await first.embed(embed)).embeddings;
const ranked = { model: "ranker", query, documents: passages };
found.cohere_rerank = (await second.rerank(ranked)).results;
found.cohere_rerank_v1 = (await first.rerank({ ...ranked, returnDocuments: false })).results;

const model = name => new InferenceClient("x", { endpointUrl: `${url}/models/${name}` });
found.hf_features = await model("sentence").featureExtraction({ inputs: texts });
found.hf_classify = await model("intent").textClassification({ inputs: texts[0], parameters: { top_k: 3 } });
found.hf_fill = await model("mask").fillMask({ inputs: "i lost my [MASK]" });

const compatible = createOpenAICompatible({ name: "here", baseURL: `${url}/v1`, apiKey: "x" });
found.vercel = (await embedMany({ model: compatible.textEmbeddingModel("sentence"), values: texts })).embeddings;
const chained = new OpenAIEmbeddings({ model: "sentence", apiKey: "x", configuration: { baseURL: `${url}/v1` } });
found.langchain = await chained.embedDocuments(texts);

console.log(JSON.stringify(found));
