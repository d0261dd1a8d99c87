"""Model formats: one reader per format, and one runner per engine.

The readers (`onnx`, `tflite`) are ours and bounded, and need nothing but the standard library. The runners (`onnx_engine`,
`tflite_engine`) load the real runtime and are imported only inside the one-shot child.
"""
