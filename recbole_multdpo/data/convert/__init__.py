"""Raw files of recommendation data sets into RecBole's atomic files.

The command is `python -m recbole_multdpo.data.convert`; docs/datasets.md describes every input and
the files that come out. `dataset_folder` writes a data set's folder, `raw_files` reads what others
publish, and each further module knows one format.
"""
