"""Small models for `test_roles`: one function a model, which returns it built."""

import keras
from keras import layers

ops = keras.ops

WIDTH = 16


def dense(name, width=WIDTH, activation=None):
    return layers.Dense(width, activation=activation, name=name)


def conv(name, width=8, size=3, strides=1):
    return layers.Conv2D(width, size, strides=strides, padding="same", name=name)


def model(inputs, outputs):
    return keras.Model(inputs, outputs)


def image():
    return keras.Input((8, 8, 3))


def tokens():
    return keras.Input((6, WIDTH))


class Scale(layers.Layer):
    """LayerScale."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


class StochasticDepth(layers.Layer):
    def __init__(self, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if not training:
            return x
        shape = (ops.shape(x)[0], *([1] * (len(x.shape) - 1)))
        kept = ops.floor(1 - self.rate + keras.random.uniform(shape, seed=self.seeds))
        return x / (1 - self.rate) * kept


class Block(layers.Layer):
    """A residual block as a subclass: post-activation, with normalization at its end."""

    def __init__(self, stem, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = conv(f"{stem}1"), conv(f"{stem}2")
        self.norm = layers.BatchNormalization(name=f"{stem}_norm")

    def call(self, x):
        return ops.relu(x + self.norm(self.second(ops.relu(self.first(x)))))


def raw_sum():
    x = conv("stem")(i := image())
    for n in range(3):
        x = x + conv(f"b{n}")(layers.ReLU()(conv(f"a{n}")(x)))
    return model(i, dense("top", 4)(layers.GlobalAveragePooling2D()(x)))


def add_layer():
    x = conv("stem")(i := image())
    for n in range(2):
        h = conv(f"b{n}")(layers.ReLU()(conv(f"a{n}")(x)))
        x = layers.Add()([layers.Dropout(0.1)(h), x])
    return model(i, dense("top", 4, "softmax")(layers.GlobalAveragePooling2D()(x)))


def projection():
    x = conv("stem")(i := image())
    h = conv("b", 12)(layers.ReLU()(conv("a", 12, strides=2)(x)))
    x = layers.ReLU()(conv("shortcut", 12, 1, 2)(x) + layers.BatchNormalization(name="end")(h))
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def pre_activation():
    x = conv("stem")(i := image())
    for n in range(2):
        h = layers.ReLU()(layers.BatchNormalization(name=f"pre{n}")(x))
        short = conv("shortcut", 8, 1)(h) if n == 0 else x
        h = conv(f"b{n}")(
            layers.ReLU()(layers.BatchNormalization(name=f"mid{n}")(conv(f"a{n}")(h)))
        )
        x = short + h
    x = layers.ReLU()(layers.BatchNormalization(name="last")(x))
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def subclassed():
    x = conv("stem")(i := image())
    x = Block("p")(x)
    inner = keras.Input((8, 8, 8))
    x = keras.Model(inner, Block("q")(inner))(x)
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def scaled_and_dropped():
    x = conv("stem")(i := image())
    h = conv("b", 8, 1)(ops.gelu(conv("a", 16, 1)(layers.LayerNormalization(name="pre")(x))))
    x = x + StochasticDepth()(Scale()(h))
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def post_normalization():
    x = dense("stem")(i := tokens())
    for n in range(2):
        h = dense(f"b{n}")(dense(f"a{n}", 32, "relu")(x))
        x = layers.LayerNormalization(name=f"post{n}")(x + h)
    return model(i, x)


def squeeze_excite():
    x = conv("stem")(i := image())
    h = layers.BatchNormalization(name="end")(conv("a")(x))
    gate = dense("up", 8, "sigmoid")(dense("down", 2, "relu")(layers.GlobalAveragePooling2D()(h)))
    x = layers.ReLU()(x + h * ops.reshape(gate, (-1, 1, 1, 8)))
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def dense_block():
    x = conv("stem")(i := image())
    for n in range(3):
        x = layers.Concatenate()([x, conv(f"a{n}", 4)(ops.relu(x))])
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def u_net():
    i = image()
    x = down = conv("down", 8)(i)
    x = conv("bottom", 8)(layers.MaxPooling2D()(ops.relu(x)))
    x = layers.Concatenate()([layers.UpSampling2D()(ops.relu(x)), down])
    return model(i, conv("out", 1, 1)(ops.relu(conv("up", 8)(x))))


def two_towers():
    i = keras.Input((WIDTH,))
    x = dense("a")(i) + dense("b")(i)
    return model(i, dense("top", 1)(ops.relu(x)))


def inception():
    x = conv("stem")(i := image())
    x = conv("a", 8, 1)(x) + conv("b", 8, 3)(x)
    return model(i, dense("top", 4)(layers.Flatten()(x)))


def parallel_block():
    """Attention and MLP side by side, on one normalization (GPT-J, PaLM)."""
    x = dense("stem")(i := tokens())
    h = layers.LayerNormalization(name="pre")(x)
    attended = layers.MultiHeadAttention(2, 8, name="att")(h, h)
    x = x + attended + dense("b")(dense("a", 32, "gelu")(h))
    return model(i, layers.LayerNormalization(name="last")(x))


def highway():
    x = dense("stem")(i := keras.Input((WIDTH,)))
    gate = dense("gate", activation="sigmoid")(x)
    x = x * (1 - gate) + dense("h", activation="relu")(x) * gate
    return model(i, dense("top", 1)(x))


def swiglu():
    x = dense("stem")(i := tokens())
    h = layers.LayerNormalization(name="pre")(x)
    x = x + dense("down")(ops.silu(dense("gate", 32)(h)) * dense("up", 32)(h))
    return model(i, dense("top", 4, "softmax")(x))


def tokens_and_positions():
    i = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, WIDTH, name="words")(i)
    x = x + Positions(name="places")(x)
    return model(i, dense("top", 20)(x))


class Positions(layers.Layer):
    def build(self, shape):
        self.table = layers.Embedding(shape[1], shape[2], name="table")
        self.table.build(())

    def call(self, x):
        return self.table(ops.arange(ops.shape(x)[1]))


def tied():
    i = keras.Input((6,), dtype="int32")
    words = layers.Embedding(20, WIDTH, name="words")
    x = dense("a")(words(i))

    class Tied(layers.Layer):
        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)
            self.table = table

        def call(self, x):
            return ops.matmul(x, ops.transpose(self.table.embeddings))

    return model(i, Tied(words)(x))


def encoder_and_decoder():
    i, j = tokens(), keras.Input((5, WIDTH))
    x, y = dense("x")(i), dense("y")(j)
    for n in range(3):
        x = x + dense(f"eb{n}")(dense(f"ea{n}", 32, "relu")(x))
    for n in range(2):
        y = y + layers.MultiHeadAttention(2, 8, name=f"cross{n}")(y, x)
    return model([i, j], dense("top", 4)(y))


def keras_attention(causal=False):
    x = i = tokens()
    x = x + layers.MultiHeadAttention(4, 4, value_dim=3, name="att")(x, x, use_causal_mask=causal)
    return model(i, dense("top", 4)(x))


def grouped():
    x = i = tokens()
    x = x + layers.GroupQueryAttention(4, 4, 2, name="att")(x, x)
    return model(i, dense("top", 4)(x))


def by_hand(form="matmul", mask=None, fused=False):
    """Attention of 4 heads of size 4, written from `Dense` or `EinsumDense`."""
    i = tokens()
    h = layers.LayerNormalization(name="pre")(i)
    if form == "einsum":
        heads = {"equation": "btd,dhk->bthk", "output_shape": (None, 4, 4)}
        q, k, v = (layers.EinsumDense(**heads, name=name)(h) for name in "qkv")
        logits = ops.einsum("bshk,bthk->bhts", k, q / 2.0)
    else:
        if fused:
            q, k, v = ops.split(dense("qkv", 48)(h), 3, axis=-1)
        else:
            q, k, v = (dense(name)(h) for name in "qkv")
        q, k, v = (ops.transpose(ops.reshape(t, (-1, 6, 4, 4)), (0, 2, 1, 3)) for t in (q, k, v))
        logits = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2.0
    if mask == "add":
        logits = logits + (1 - ops.tril(ops.ones((6, 6)))) * -1e9
    elif mask == "where":
        logits = ops.where(ops.tril(ops.ones((6, 6), "bool")), logits, -1e9)
    weights = layers.Dropout(0.1)(ops.softmax(logits))
    if form == "einsum":
        mixed = ops.einsum("bhts,bshk->bthk", weights, v)
        out = layers.EinsumDense("bthk,hkd->btd", output_shape=(None, WIDTH), name="o")(mixed)
    else:
        mixed = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
        out = dense("o")(ops.reshape(mixed, (-1, 6, 16)))
    return model(i, dense("top", 4)(i + out))


def routed():
    """A softmax that no product of signals precedes: soft mixture of experts."""
    x = dense("stem")(i := keras.Input((WIDTH,)))
    shares = ops.softmax(dense("router", 3)(x))
    experts = ops.stack([dense(f"e{n}")(x) for n in range(3)], axis=1)
    return model(i, dense("top", 1)(ops.sum(experts * ops.expand_dims(shares, -1), axis=1)))


def recurrent():
    x = layers.LSTM(5, return_sequences=True, name="lstm")(i := keras.Input((7, 4)))
    x = layers.Bidirectional(layers.GRU(3, name="gru"), name="both")(x)
    return model(i, dense("top", 2)(x))


def backbone():
    x = conv("a")(i := image())
    return model(i, layers.ReLU()(conv("b")(layers.ReLU()(x))))


def additive_u():
    """A sum over the whole of the inner network is a residual addition like any other."""
    x = conv("down")(i := image())
    h = layers.UpSampling2D()(ops.relu(conv("bottom", 8)(layers.MaxPooling2D()(x))))
    x = x + conv("up")(h)
    return model(i, conv("out", 1, 1)(x))


def nested():
    """The inner branch belongs to the inner addition; the kernel before it ends the outer one."""
    x = dense("stem")(i := keras.Input((WIDTH,)))
    y = dense("a")(x)
    y = y + dense("d")(dense("c", activation="relu")(y))
    return model(i, dense("top", 1)(x + y))


def three_terms():
    x = dense("stem")(i := keras.Input((WIDTH,)))
    x = layers.Add()([dense("a")(ops.relu(x)), x, dense("b")(ops.tanh(x))])
    return model(i, dense("top", 1)(x))


def difference():
    """A denoiser subtracts what its branch estimates."""
    x = conv("stem")(i := image())
    x = x - conv("b")(ops.relu(conv("a")(x)))
    return model(i, dense("top", 1)(layers.Flatten()(x)))


def conditioned():
    """Blocks modulated by a signal from outside, which all blocks share (as in diffusion)."""
    i, c = keras.Input((WIDTH,)), keras.Input((4,))
    time = dense("time", activation="silu")(c)
    x = dense("stem")(i)
    for n in range(2):
        gate = dense(f"modulation{n}")(time)
        x = x + gate * dense(f"b{n}")(dense(f"a{n}", activation="relu")(x))
    return model([i, c], dense("top", 1)(x))


def masked_by_data(causal):
    i, seen = tokens(), keras.Input((6,), dtype="bool")
    mask = ops.expand_dims(seen, 1)
    if causal:
        mask = ops.logical_and(mask, ops.tril(ops.ones((6, 6), "bool")))
    else:
        mask = ops.logical_and(mask, ops.expand_dims(seen, 2))
    x = i + layers.MultiHeadAttention(4, 4, name="att")(i, i, attention_mask=mask)
    return model([i, seen], dense("top", 4)(x))


class RootMeanSquareNorm(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        mean = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(mean + 1e-6) * self.scale


def own_normalization():
    x = dense("stem")(i := tokens())
    x = x + RootMeanSquareNorm()(dense("b")(dense("a", activation="relu")(x)))
    return model(i, dense("top", 1)(x))


def modulated():
    """A diffusion transformer's block: shifts, scales and gates are cut from one conditioning."""
    i, c = keras.Input((WIDTH,)), keras.Input((4,))
    x = dense("stem")(i)
    parts = ops.split(dense("modulation", 6 * WIDTH)(ops.silu(c)), 6, axis=-1)
    for n in range(2):
        shift, scale, gate = parts[3 * n : 3 * n + 3]
        h = layers.LayerNormalization(name=f"pre{n}")(x) * (1 + scale) + shift
        x = x + gate * dense(f"b{n}")(dense(f"a{n}", activation="gelu")(h))
    return model([i, c], dense("top", 1)(x))


def residual_in_residual():
    x = conv("stem")(i := image())
    y = x
    for n in range(2):
        y = y + conv(f"b{n}")(ops.relu(conv(f"a{n}")(y)))
    x = x + 0.2 * y
    return model(i, conv("out", 3)(x))


def one_by_one_and_pooling():
    """A classifier whose head is a convolution (SqueezeNet)."""
    x = conv("out", 4, size=1)(layers.ReLU()(conv("a")(inputs := image())))
    return model(inputs, layers.Softmax()(layers.GlobalAveragePooling2D()(x)))


def two_outputs():
    """A class and a map."""
    inputs = image()
    x = layers.ReLU()(conv("a")(inputs))
    return model(inputs, [dense("top", 3)(layers.Flatten()(x)), conv("map", 1)(x)])


class ReZero(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="zeros", name="factor")

    def call(self, x):
        return self.factor * x


def layer_scale():
    """Branches times a vector that is trained, a scalar that is trained, and a number."""
    inputs = image()
    x = conv("stem")(inputs)
    x = layers.Add()([x, Scale()(conv("b")(layers.ReLU()(conv("a")(x))))])
    x = layers.Add()([x, ReZero()(conv("f")(layers.ReLU()(conv("e")(x))))])
    y = StochasticDepth()(conv("d")(layers.ReLU()(conv("c")(x))) * 0.5)
    return model(inputs, layers.Add()([x, y]))
