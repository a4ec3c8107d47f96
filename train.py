"""Train, validate, test or draw images: python train.py fit --config experiments/demo.yaml."""

from asyncdiff.__main__ import packages_told

with packages_told():
    from asyncdiff.cli.train import main

if __name__ == "__main__":
    main()
