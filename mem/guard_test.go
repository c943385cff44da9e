package mem_test

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"vmscope/mem"
)

// A guest that goes away while it is read is an error, not the end.
func TestGuard(t *testing.T) {
	f, data := mapFile(t, t.TempDir(), 0x4000)
	if _, err := f.WriteAt(fill(0x4000, 9), 0); err != nil {
		t.Fatal(err)
	}
	r, err := mem.NewRAM(mem.Segment{PA: 0x1000, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	s := mem.NewSpace("physical", r, mem.Identity{})
	if err := os.Truncate(f.Name(), 0x2000); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 0x4000)
	_, err = r.ReadPhys(p, 0x1000)
	if !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("ReadPhys: %v", err)
	}
	_, err = r.Load64(0x4000)
	if !errors.Is(err, mem.ErrUnreachable) {
		t.Errorf("Load64: %v", err)
	}
	for name, read := range map[string]func() error{
		"Uint64": func() error { _, err := s.Uint64(0x4008); return err },
		"Uint32": func() error { _, err := s.Uint32(0x4008); return err },
		"Read":   func() error { _, err := s.Read(p[:64], 0x4008); return err },
		"slow":   func() error { _, err := s.Read(p, 0x1000); return err },
	} {
		done := false
		err := mem.Guard(func() error {
			if _, err := s.Uint64(0x1008); err != nil {
				t.Errorf("%s: what is left: %v", name, err)
			}
			err := read()
			done = err == nil
			return err
		})
		var f *mem.FaultError
		if done || !errors.Is(err, mem.ErrUnreachable) || !errors.As(err, &f) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if v, err := r.Load64(0x1000); v == 0 || err != nil {
		t.Errorf("afterwards: %#x, %v", v, err)
	}
}

func TestGuardPassesOn(t *testing.T) {
	mine := errors.New("mine")
	if err := mem.Guard(func() error { return mine }); err != mine {
		t.Error(err)
	}
	if err := mem.Guard(func() error { return nil }); err != nil {
		t.Error(err)
	}
	var index runtime.Error
	for name, f := range map[string]func() error{
		"value": func() error { panic(mine) },
		"index": func() error { return []error{}[len(os.Args)-len(os.Args)] },
	} {
		func() {
			defer func() {
				switch r := recover(); {
				case name == "value" && r != any(mine):
					t.Errorf("%s: %v", name, r)
				case name == "index":
					if e, ok := r.(error); !ok || !errors.As(e, &index) {
						t.Errorf("%s: %v", name, r)
					}
				}
			}()
			t.Errorf("%s: Guard returned %v", name, mem.Guard(f))
		}()
	}
}
