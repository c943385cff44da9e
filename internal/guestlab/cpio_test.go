package guestlab

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// parseCpio reads an archive back by the format's description, and fails on any broken alignment.
func parseCpio(t *testing.T, b []byte) []string {
	t.Helper()
	var list []string
	for off := 0; ; {
		if off+110 > len(b) || string(b[off:off+6]) != "070701" {
			t.Fatalf("no header at %d", off)
		}
		var field [13]int
		for i := range field {
			n, err := strconv.ParseUint(string(b[off+6+8*i:off+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			field[i] = int(n)
		}
		mode, size, nameSize := field[1], field[6], field[11]
		name := string(b[off+110 : off+110+nameSize])
		data := off + (110+nameSize+3)&^3
		off = data + (size+3)&^3
		if !strings.HasSuffix(name, "\x00") {
			t.Fatalf("name %q does not end", name)
		}
		list = append(list, fmt.Sprintf("%s %o %d:%d %q", name[:nameSize-1], mode, field[9], field[10], b[data:data+size]))
		if name == trailer+"\x00" {
			if off != len(b) {
				t.Fatalf("%d bytes behind the trailer", len(b)-off)
			}
			return list
		}
	}
}

func TestCpio(t *testing.T) {
	var b bytes.Buffer
	c := newCpio(&b)
	c.file("a/b/c", 0o755, []byte("hello"))
	c.dir("tmp", 0o777)
	c.dir("a/b", 0o700) // there already
	c.symlink("init", "bin/x")
	c.charDevice("dev/console", 0o600, 5, 1)
	c.file("/a/empty", 0o644, nil)
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`. 40755 0:0 ""`, `a 40755 0:0 ""`, `a/b 40755 0:0 ""`, `a/b/c 100755 0:0 "hello"`, `tmp 40777 0:0 ""`,
		`init 120777 0:0 "bin/x"`, `dev 40755 0:0 ""`, `dev/console 20600 5:1 ""`, `a/empty 100644 0:0 ""`, `TRAILER!!! 0 0:0 ""`,
	}
	if got := parseCpio(t, b.Bytes()); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
