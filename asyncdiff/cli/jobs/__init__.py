"""What commands do once their options have been checked; imported late, because these modules import PyTorch."""
