"""A convolution that learns faster where maps are small and channels many, as in the deep blocks of VGG."""

from __future__ import annotations

import keras
import tensorflow as tf

#: Pixels of a map up to which the filter gradient is taken as matrix products (`benchmarks/training.py`).
SMALL_MAP = 64


@tf.custom_gradient
def _convolve(images, kernel):
    """3 x 3 convolution with zeros around the image; the gradient of every tap is one product of two matrices."""
    height, width, channels = images.shape[1:]
    filters = kernel.shape[-1]

    def backward(upstream):
        to_images = tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream,
                                                   strides=[1] * 4, padding="SAME")
        padded = tf.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        flat = tf.reshape(upstream, (-1, filters))
        taps = [tf.matmul(tf.reshape(padded[:, row:row + height, column:column + width], (-1, channels)), flat,
                          transpose_a=True) for row in range(3) for column in range(3)]
        return to_images, tf.reshape(tf.stack(taps), kernel.shape)

    return tf.nn.conv2d(images, kernel, 1, "SAME"), backward


class DeepConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` (3 x 3, stride 1, zero padding) with a faster filter gradient on small maps.

    oneDNN's filter gradient suits large maps: on 6 x 5 pixels with 512 channels it takes longer than the forward pass
    and the gradient of the input together, matrix products a quarter of that (bfloat16). Values are the same, up to
    rounding; on maps above `SMALL_MAP` pixels, or of unknown size, it is the layer of Keras.
    """

    def convolution_op(self, inputs, kernel):
        """The convolution without bias (hook of Keras)."""
        height, width = inputs.shape[1:3]
        if height is None or width is None or height * width > SMALL_MAP:
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, tf.convert_to_tensor(kernel))
