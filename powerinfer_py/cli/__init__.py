"""The commands: parsers and a `main(argv) -> int` each, over an API that programs can call too."""
