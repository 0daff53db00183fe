"""`vqcodec view`: a local page on which a picture is compressed while one looks at it (extra `view`)."""
