"""Recurrent layers: SimpleRNN, LSTM, GRU, RNN with their cells, ConvLSTM, and Bidirectional."""
