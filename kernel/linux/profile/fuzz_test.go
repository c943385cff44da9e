package profile

import (
	"bytes"
	"errors"
	"os"
	"testing"
)

// FuzzParse reads any file. What is accepted can be used and written, and comes
// back as it was.
func FuzzParse(f *testing.F) {
	f.Add([]byte(smallMap))
	f.Add(smallBTF(f))
	f.Add(smallISF(f))
	f.Add([]byte(`{"user_types":{"task_struct":{"size":8,"kind":"struct","fields":{"a":{"offset":0,"type":{"kind":"array","count":3,"subtype":{"kind":"pointer","subtype":{"kind":"struct","name":"x"}}}},"u":{"offset":0,"anonymous":true,"type":{"kind":"union","name":"unnamed_1"}}}},"unnamed_1":{"size":4,"kind":"union","fields":{}}}}`))
	if p, err := Parse(f.Context(), smallISF(f)); err == nil {
		var b bytes.Buffer
		if err := p.Write(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	// That of gcc, not made here: a compiler of another version would change the
	// seeds.
	if b, err := os.ReadFile("testdata/small.elf"); err == nil {
		f.Add(b)
	} else {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		p, err := Parse(t.Context(), b)
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if err != nil {
			return
		}
		if p.Types == nil && p.Symbols == nil {
			t.Fatal("accepted, and tells nothing")
		}
		if p.Types != nil {
			typ, err := p.Types.Lookup("task_struct")
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for m := range typ.Members() {
				if n++; n > 100 {
					break
				}
				_, _, _ = m.Size(), m.Type.String(), m.Type.Signed()
			}
		}
		var out bytes.Buffer
		if err := p.Write(&out); err != nil {
			t.Fatal(err)
		}
		q, err := Parse(t.Context(), out.Bytes())
		if err != nil {
			if p.Types == nil && errors.Is(err, ErrFormat) {
				return
			}
			t.Fatalf("written, and refused: %v", err)
		}
		if !bytes.Equal(q.btf, p.btf) || q.BuildID != p.BuildID {
			t.Fatal("it came back as another")
		}
	})
}
