"""TensorFlow and Keras with the settings they read when they are loaded. Import them from here, and only in the
process that trains."""

import os

# TensorFlow turns its oneDNN kernels on by itself only where the processor has AVX512-VNNI. They train our networks
# 1.6 times faster on a plain AVX2 processor too (Custom_CNN: 246 -> 145 ms a step on 2 cores of an AMD EPYC).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import tensorflow as tf

for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)

__all__ = ["keras", "tf"]
