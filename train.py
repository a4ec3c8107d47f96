"""Train, validate and test a model, or sample from it: python train.py fit --config experiments/demo.yaml."""

from asyncdiff.__main__ import explain_missing_packages

with explain_missing_packages():
    from asyncdiff.cli.train import main

if __name__ == "__main__":
    main()
