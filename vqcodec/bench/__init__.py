"""`vqcodec bench`: rate-distortion rows of vqcodec and its peers, their summary and a report. Needs the extra `bench`."""
