"""The configuration: where it lies, composing it, and finding every fault in it before anything is loaded."""
