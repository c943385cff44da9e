package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed floor/floor.c
var floorSource string

// floor is the compiled C program. A nil floor measures nothing.
type floor struct{ dir, prog string }

// buildFloor compiles floor.c with the machine's C compiler.
func buildFloor(dir string) (*floor, error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(dir, "vmscope-floor-")
	if err != nil {
		return nil, err
	}
	f := &floor{dir: tmp, prog: filepath.Join(tmp, "floor")}
	cmd := exec.Command(cc, "-O2", "-x", "c", "-o", f.prog, "-")
	cmd.Stdin = strings.NewReader(floorSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.close()
		return nil, fmt.Errorf("compile floor.c: %w\n%s", err, out)
	}
	return f, nil
}

func (f *floor) close() {
	if f != nil {
		os.RemoveAll(f.dir)
	}
}

// run measures every line of the floor once: nanoseconds by name.
func (f *floor) run(g *guest, slice time.Duration) (map[string]float64, error) {
	if f == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+20*slice)
	defer cancel()
	out, err := exec.CommandContext(ctx, f.prog, g.ram, strconv.FormatUint(g.low, 10), strconv.FormatUint(g.root, 10),
		strconv.Itoa(g.levels), g.addrs, strconv.FormatInt(slice.Milliseconds(), 10)).Output()
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	ns := map[string]float64{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			ns[name] = v
		}
	}
	return ns, nil
}
