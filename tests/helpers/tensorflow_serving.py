"""Answers requests as TensorFlow Serving does: protos in and out, and a session that runs the graph."""

import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse


class Server:
    """Serves a version of a SavedModel; needs no Python object of the model, as TensorFlow Serving."""

    def __init__(self, version):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            meta = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(version))
        self._signatures = meta.signature_def

    def predict(self, content):
        """Returns the bytes of a `PredictResponse` for those of a `PredictRequest`."""
        request = PredictRequest.FromString(content)
        signature = self._signatures[request.model_spec.signature_name]
        assert set(request.inputs) == set(signature.inputs)
        given = {
            signature.inputs[name].name: tf.make_ndarray(value) for name, value in request.inputs.items()
        }
        wanted = {name: info.name for name, info in signature.outputs.items()}
        response = PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        for name, value in self._session.run(wanted, given).items():
            info = signature.outputs[name]
            assert value.dtype == tf.as_dtype(info.dtype).as_numpy_dtype
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response.SerializeToString()


def ask(server, signature, name, values):
    """The arrays that a client reads from the response to a request with one input."""
    request = PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "detector", signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    response = PredictResponse.FromString(server.predict(request.SerializeToString()))
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
