"""Recurrent nets: taggers, a loop over a cell, both directions, an encoder and a decoder with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.own.draw import Builder, normal, words


class Tagger(nn.Module):
    """A tag for every word, from a recurrent layer over the sentence."""

    def __init__(
        self, cell: type[nn.LSTM] | type[nn.GRU], vocabulary: int = 40, width: int = 16, tags: int = 5
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = cell(width, width, num_layers=2, batch_first=True)
        self.tag = nn.Linear(width, tags)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return self.tag(states)


class Bidirectional(nn.Module):
    """Sentences classified by the last state of each direction."""

    def __init__(self, vocabulary: int = 40, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.classify(self.dropout(torch.cat([hidden[0], hidden[1]], dim=1)))


class CellLoop(nn.Module):
    """A Python loop over an LSTM cell."""

    def __init__(self, features: int = 6, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.width = width
        self.cell = nn.LSTMCell(features, width)
        self.head = nn.Linear(width, classes)

    def forward(self, series: Tensor) -> Tensor:
        hidden = series.new_zeros(series.shape[0], self.width)
        memory = torch.zeros_like(hidden)
        for step in range(series.shape[1]):
            hidden, memory = self.cell(series[:, step], (hidden, memory))
        return self.head(hidden)


class Forecaster(nn.Module):
    """The next values of a series, time first, from a plain recurrent net."""

    def __init__(self, features: int = 3, width: int = 12) -> None:
        super().__init__()
        self.rnn = nn.RNN(features, width, nonlinearity="tanh")
        self.out = nn.Linear(width, features)

    def forward(self, series: Tensor) -> Tensor:
        states, _ = self.rnn(series.transpose(0, 1))
        return self.out(states[-1])


class Seq2Seq(nn.Module):
    """A GRU encoder, and a decoder that looks back at it with additive attention (Bahdanau et al. 2015)."""

    def __init__(self, vocabulary: int = 30, width: int = 16) -> None:
        super().__init__()
        self.source = nn.Embedding(vocabulary, width)
        self.target = nn.Embedding(vocabulary, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.decoder = nn.GRUCell(2 * width, width)
        self.out = nn.Linear(2 * width, vocabulary)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        keys, hidden = self.key(memory), last[0]
        logits = []
        for word in self.target(target).unbind(1):
            scores = self.score(torch.tanh(keys + self.query(hidden).unsqueeze(1))).squeeze(-1)
            context = torch.bmm(scores.softmax(dim=1).unsqueeze(1), memory).squeeze(1)
            hidden = self.decoder(torch.cat([word, context], dim=1), hidden)
            logits.append(self.out(torch.cat([hidden, context], dim=1)))
        return torch.stack(logits, dim=1)


MODELS: dict[str, Builder] = {
    "lstm_tagger": lambda: ZooModel(
        "lstm_tagger", Tagger(nn.LSTM), (words(40, 4, 7),), "cross-entropy", words(5, 4, 7)
    ),
    "gru_tagger": lambda: ZooModel("gru_tagger", Tagger(nn.GRU), (words(40, 4, 7),), "cross-entropy", words(5, 4, 7)),
    "bidirectional_lstm": lambda: ZooModel(
        "bidirectional_lstm", Bidirectional(), (words(40, 4, 7),), "cross-entropy", words(4, 4)
    ),
    "cell_loop": lambda: ZooModel("cell_loop", CellLoop(), (normal(4, 6, 6),), "cross-entropy", words(3, 4)),
    "rnn_forecaster": lambda: ZooModel("rnn_forecaster", Forecaster(), (normal(4, 8, 3),), "mse", normal(4, 3)),
    "seq2seq_attention": lambda: ZooModel(
        "seq2seq_attention", Seq2Seq(), (words(30, 4, 6), words(30, 4, 5)), "cross-entropy", words(30, 4, 5)
    ),
}
