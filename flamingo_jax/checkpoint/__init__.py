"""What is kept on disk: the steps of a run (`store`), model directories (`export`), towers for a model (`partial`)."""
