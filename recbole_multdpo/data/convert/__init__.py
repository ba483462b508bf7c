"""Converters from raw files of recommendation data sets to RecBole's atomic files.

The command is `python -m recbole_multdpo.data.convert`; docs/datasets.md describes its inputs and
outputs. `dataset_folder` writes a data set's folder, `raw_files` reads published files, and each
format has its own module.
"""
