package fsoracle

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// logOf makes a log whose entries each fill sectors with a byte, or discard them.
func logOf(entries ...[4]uint64) []byte { // first sector, sectors, flags, byte
	super := make([]byte, logSector)
	binary.LittleEndian.PutUint64(super, logMagic)
	binary.LittleEndian.PutUint64(super[8:], 1)
	binary.LittleEndian.PutUint64(super[16:], uint64(len(entries)))
	binary.LittleEndian.PutUint32(super[24:], logSector)
	log := super
	for _, e := range entries {
		head := make([]byte, logSector)
		for i, v := range e[:3] {
			binary.LittleEndian.PutUint64(head[8*i:], v)
		}
		log = append(log, head...)
		if e[2]&logDiscard == 0 {
			log = append(log, bytes.Repeat([]byte{byte(e[3])}, int(e[1])*logSector)...)
		}
	}
	return log
}

func TestImage(t *testing.T) {
	r := Recording{Base: bytes.Repeat([]byte("."), 4*512), Log: logOf([4]uint64{1, 2, 0, 'a'}, [4]uint64{0, 0, 1, 0}, [4]uint64{2, 2, 2, 'b'}, [4]uint64{1, 1, logDiscard, 0})}
	for n, want := range []string{"....", ".aa.", ".aa.", ".abb", ".\x00bb"} {
		image, err := r.Image(uint64(n))
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for i := 0; i < len(image); i += 512 {
			if !bytes.Equal(image[i:i+512], bytes.Repeat(image[i:i+1], 512)) {
				t.Errorf("after %d entries sector %d is mixed", n, i/512)
			}
			got.WriteByte(image[i])
		}
		if got.String() != want {
			t.Errorf("after %d entries %q, want %q", n, got.String(), want)
		}
	}
	if string(r.Base) != strings.Repeat(".", 4*512) {
		t.Error("the base has changed")
	}
	if _, err := r.Image(5); err == nil {
		t.Error("an image after more entries than there are")
	}
	for name, bad := range map[string][]byte{
		"no log": nil, "outside": logOf([4]uint64{3, 2, 0, 'a'}), "far outside": logOf([4]uint64{1, 1<<64 - 1, logDiscard, 0}),
		"cut": logOf([4]uint64{1, 2, 0, 'a'})[:3*512], "cut before an entry": logOf([4]uint64{1, 2, 0, 'a'})[:600],
	} {
		r := Recording{Base: r.Base, Log: bad}
		if _, err := r.Image(1); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	want := &Recording{
		Meta: Meta{Name: "x", Size: 2048, Mke2fs: []string{"-b", "1024"}}, Base: make([]byte, 2048), Log: logOf([4]uint64{1, 2, 0, 'a'}),
		Points: []Point{{Entries: 1, What: "mounted", Tree: small()}},
	}
	if err := want.WriteTold(dir); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{baseFile: want.Base, logFile: want.Log} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadDir(dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("from the directory: %+v, %v", got, err)
	}
	var packed bytes.Buffer
	if err := Pack(&packed, dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x"+Extension)
	if err := os.WriteFile(path, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err = Open(path); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("packed: %+v, %v", got, err)
	}
	for n := range packed.Len() / 4 {
		if err := os.WriteFile(path, packed.Bytes()[:4*n], 0o644); err != nil {
			t.Fatal(err)
		}
		if r, err := Open(path); err == nil && reflect.DeepEqual(r, want) {
			t.Fatalf("%d of %d bytes were enough", 4*n, packed.Len())
		}
	}
}
