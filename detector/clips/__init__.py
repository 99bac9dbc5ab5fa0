"""The sound of events as files on this computer, off by default: cut to the sample, within a number of bytes and days."""
