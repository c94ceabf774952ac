"""The one exception type that means "the user can fix this"."""


class UserError(ValueError):
  """Bad input: a config, data row, checkpoint, tokenizer, folder or request.

  The message is one line that names the thing and says what to do. Every
  command in `launch/` prints it as `error: ...` and exits with status 2.
  """
