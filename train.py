"""Train, validate, test or draw images: python train.py fit --config experiments/demo.yaml."""

from asyncdiff.cli import main

if __name__ == "__main__":
    main()
