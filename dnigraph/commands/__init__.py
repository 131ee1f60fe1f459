"""What stands behind the command line: SPEC to a model with an example call, and what each command says of it.

cli ─► model_specs ─► libraries        package.module:callable, path/to/file.py:callable, timm:NAME
   └─► examples                        --input "4,3,32,32"
   └─► looks                           inspect, plan, draw, check
"""
