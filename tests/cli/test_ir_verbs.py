"""`opt`, `bisect`, and the lists: what they print, and that reproducers run again."""

IR = """// run: cse
module @m stage=raised {
  sym T in [1, 64]
  func @forward(%x: f32[T, 8]) {
    %a = add %x, %x : f32[T, 8]
    %b = add %x, %x : f32[T, 8]
    %c = add %a, 1.0 : f32[T, 8]
    %d = mul %c, %b : f32[T, 8]
    return %d
  }
}
"""
