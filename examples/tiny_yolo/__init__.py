"""An object detector in the manner of TinyYOLOv2 whose grid, boxes, classes, labels and anchors may all change under a running client.

`make_model` writes versions of it, `client` runs whatever version the server binds. README.md is the tour.
"""
