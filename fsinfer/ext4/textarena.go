package ext4

import "strings"

// textArena makes strings that come in thousands and go together, many in one piece of memory. Who keeps one for long clones it: it
// holds the whole piece.
type textArena struct {
	piece *strings.Builder // what was taken from it does not change
	most  int              // bytes of a piece
}

// begin makes room for a string of so many bytes, to be written by add and taken by end.
func (t *textArena) begin(size int) (at int) {
	if t.piece == nil || t.piece.Cap()-t.piece.Len() < size {
		t.most = min(max(4*t.most, 64), 1<<10)
		t.piece = new(strings.Builder)
		t.piece.Grow(max(t.most, size))
	}
	return t.piece.Len()
}

// end is the string that was begun at that place.
func (t *textArena) end(at int) string { return t.piece.String()[at:] }

// keep copies bytes.
func (t *textArena) keep(b []byte) string {
	at := t.begin(len(b))
	t.piece.Write(b)
	return t.end(at)
}

// join puts a name behind the path of its directory.
func (t *textArena) join(dir, name string) string {
	at := t.begin(len(dir) + 1 + len(name))
	t.piece.WriteString(dir)
	t.piece.WriteByte('/')
	t.piece.WriteString(name)
	return t.end(at)
}
