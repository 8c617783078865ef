"""The language model: questions, embeddings, errors and limits, through the OpenAI SDK."""
