"""The mathematics: moments, covariances, quadrature and fans; NumPy alone, no Keras.

Counts and rules:

* `fans`: fan-in, fan-out and exact connection counts, einsum patterns.
* `quadrature`: Gauss-Legendre over N(0, 1); τ and γ of a stage with pooling.

One entry or a pair of entries:

* `hermite`: dual activation E f(u) f(u'), Mehler's formula.
* `joint_moments`: h(a, b) of two signals, Mehler's formula in two variables.
* `maxima`: maximum of correlated Gaussians.
* `entry_laws`, `laws`, `mean_laws`: non-Gaussian entries, as quantile transforms; laws of
  functions, mixtures and means (Cornish-Fisher).
* `steepness`, `together`: correlated squared slopes in gradients.

Feature maps:

* `covariance`: second moments of all pairs of positions (NNGP kernel).
* `windows`, `overlaps`, `borders`: convolution, pooling, upsampling and padding along axes.
* `activated`: activations and max pooling.
* `algebra`, `combining`, `expansions`: sums, products and other merges, also of dependent signals.
* `common_factors`, `scatter`: factors that channels share; random correlations of few taps.

Sequences:

* `recurrence`: SimpleRNN, LSTM and GRU (mean-field theory).
* `attention`, `patterns`, `tokens`: softmax attention, masks.
"""
