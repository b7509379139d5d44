"""Text to tokens and back, from the metadata of a model file alone; chat templates.

No models and no generation. The libraries behind it are imported when a tokenizer is loaded or a template rendered.
"""

from powerinfer_py.tokenizer.chat_encoding import encode_chat
from powerinfer_py.tokenizer.chat_template import ChatTemplate
from powerinfer_py.tokenizer.loading import load_tokenizer
from powerinfer_py.tokenizer.stream import TextStream
from powerinfer_py.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "TextStream", "Tokenizer", "encode_chat", "load_tokenizer"]
