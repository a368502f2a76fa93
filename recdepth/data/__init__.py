"""Data: verifiable tasks, tokenizers, packing, and the LightningDataModules over them."""

from recdepth.data.datamodule import DataModule, TaskData
from recdepth.data.encoding import ItemTooLongError
from recdepth.data.items import SPLITS, EvaluationItem, Item, ProceduralTask, Split, Task, split_of
from recdepth.data.tokenizers import byte_tokenizer, character_tokenizer, pretrained_tokenizer, word_tokenizer
from recdepth.data.word_problems import WordProblems

__all__ = [
    "SPLITS",
    "DataModule",
    "EvaluationItem",
    "Item",
    "ItemTooLongError",
    "ProceduralTask",
    "Split",
    "Task",
    "TaskData",
    "WordProblems",
    "byte_tokenizer",
    "character_tokenizer",
    "pretrained_tokenizer",
    "split_of",
    "word_tokenizer",
]
