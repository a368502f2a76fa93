"""Data: verifiable tasks, tokenizers, packing, and the LightningDataModules over them."""

from recdepth.data.datamodule import DataModule, TaskData
from recdepth.data.encoding import ItemTooLongError
from recdepth.data.items import SPLITS, EvaluationItem, Item, ProceduralTask, Split, Task, split_of
from recdepth.data.pointer_chase import PointerChase
from recdepth.data.reasoning_gym import ReasoningGym, reasoning_gym_data
from recdepth.data.text import TextData, TextSource
from recdepth.data.tokenizers import byte_tokenizer, character_tokenizer, pretrained_tokenizer, word_tokenizer
from recdepth.data.word_problems import WordProblems

__all__ = [
    "SPLITS",
    "DataModule",
    "EvaluationItem",
    "Item",
    "ItemTooLongError",
    "PointerChase",
    "ProceduralTask",
    "ReasoningGym",
    "Split",
    "Task",
    "TaskData",
    "TextData",
    "TextSource",
    "WordProblems",
    "byte_tokenizer",
    "character_tokenizer",
    "pretrained_tokenizer",
    "reasoning_gym_data",
    "split_of",
    "word_tokenizer",
]
