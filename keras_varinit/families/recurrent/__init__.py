"""Recurrent layers: SimpleRNN, LSTM, GRU, their cells, and both directions."""
