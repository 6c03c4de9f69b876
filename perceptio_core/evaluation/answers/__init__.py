"""Reading what an answer says: by our own rules, and by those of VLMEvalKit and lmms-eval."""
