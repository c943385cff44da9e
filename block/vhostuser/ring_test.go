package vhostuser

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Cutting what a request's memory is made of keeps each byte in its place.
func TestPieces(t *testing.T) {
	for range 2000 {
		all := make([]byte, 1+rand.IntN(100))
		for i := range all {
			all[i] = byte(i)
		}
		var v [][]byte
		for rest := all; len(rest) > 0; {
			n := 1 + rand.IntN(len(rest))
			v, rest = append(v, rest[:n:n]), rest[n:]
		}
		join := func(v [][]byte) []byte { return bytes.Join(v, nil) }
		n := rand.IntN(len(all) + 1)
		clone := func() [][]byte { return append([][]byte(nil), v...) }

		if got := join(skip(clone(), n)); !bytes.Equal(got, all[n:]) {
			t.Fatalf("skip %d of %v: %v", n, v, got)
		}
		c := chain{read: clone()}
		first := join(c.cut(n))
		if !bytes.Equal(first, all[:n]) || !bytes.Equal(join(c.read), all[n:]) {
			t.Fatalf("cut %d of %v: %v and %v", n, v, first, c.read)
		}
		c = chain{read: clone()}
		p := make([]byte, n)
		if !c.take(p) || !bytes.Equal(p, all[:n]) || !bytes.Equal(join(c.read), all[n:]) || c.take(make([]byte, len(all)-n+1)) {
			t.Fatalf("take %d of %v: %v and %v", n, v, p, c.read)
		}
		c = chain{write: clone()}
		if last := c.last(); len(last) != 1 || last[0] != all[len(all)-1] || !bytes.Equal(join(c.write), all[:len(all)-1]) {
			t.Fatalf("last of %v: %v and %v", v, last, c.write)
		}
		to := make([]byte, len(all))
		var w [][]byte
		for i := 0; i < len(to); i += 7 {
			w = append(w, to[i:min(i+7, len(to))])
		}
		if left := scatter(w, all[:n]); !bytes.Equal(to[:n], all[:n]) || size(left) != int64(len(all)-n) {
			t.Fatalf("scatter %d: %v, %d left", n, to, size(left))
		}
	}
}

// The window of event indexes, also where they wrap (virtio 1.2, 2.7.10).
func TestCrossed(t *testing.T) {
	for _, tt := range []struct {
		event, now, old uint16
		want            bool
	}{
		{0, 1, 0, true}, {1, 1, 0, false}, {5, 6, 5, true}, {4, 6, 5, false}, {5, 9, 5, true}, {8, 9, 5, true}, {9, 9, 5, false},
		{0xffff, 0, 0xffff, true}, {0xffff, 3, 0xfffe, true}, {0xfffd, 3, 0xfffe, false}, {2, 3, 0xfffe, true}, {7, 7, 7, false},
	} {
		if got := crossed(tt.event, tt.now, tt.old); got != tt.want {
			t.Errorf("event %d, from %d to %d: %v", tt.event, tt.old, tt.now, got)
		}
	}
}
