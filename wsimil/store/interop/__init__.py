"""Feature files of CLAM, TRIDENT, STAMP, AtlasPatch, slide2vec and LazySlide: read as bags, and written from them.

One file, one layout. Written from the documented layouts, not from anybody's code.
"""
