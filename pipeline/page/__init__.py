"""The page to play with: a checkpoint asked in the browser, and samples of what the stages made, by Gradio on loopback."""
