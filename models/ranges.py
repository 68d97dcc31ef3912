"""Ranges of task parameters, as types that `TaskParams.read` checks. Pydantic has those of positive and of non-negative numbers."""

from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0, lt=1)]  # a share that is left out or changed; 0 = none
Part = Annotated[float, Field(gt=0, le=1)]  # a share that is used
Unit = Annotated[float, Field(ge=0, le=1)]  # the learning rate of trees, for example
Rows = Annotated[int, Field(ge=2)]  # of a training batch: batch normalisation needs two
Depth = Annotated[int, Field(ge=1, le=16)]  # of a tree; a full one of depth 16 has 131,071 nodes
