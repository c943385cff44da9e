package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
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

// floorRun is the floor at work on one guest. A nil floorRun has no rows.
type floorRun struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start runs the floor on g.
func (f *floor) start(g *guest, slice time.Duration) (*floorRun, error) {
	if f == nil {
		return nil, nil
	}
	r := &floorRun{cmd: exec.Command(f.prog, g.ram, strconv.FormatUint(g.low, 10), strconv.FormatUint(g.root, 10),
		strconv.Itoa(g.levels), g.addrs, strconv.FormatInt(slice.Milliseconds(), 10))}
	r.cmd.Stderr = os.Stderr
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.out = bufio.NewReader(out)
	return r, r.cmd.Start()
}

func (r *floorRun) stop() {
	if r != nil {
		r.in.Close()
		r.cmd.Wait()
	}
}

// measure gives the nanoseconds of a row of floor.c; ok is false where there is
// no such row.
func (r *floorRun) measure(row string) (ns float64, ok bool, err error) {
	if r == nil || row == "" {
		return 0, false, nil
	}
	if _, err := fmt.Fprintln(r.in, row); err != nil {
		return 0, false, fmt.Errorf("floor: %w", err)
	}
	line, err := r.out.ReadString('\n')
	if err != nil {
		return 0, false, fmt.Errorf("floor: %w", err)
	}
	ns, err = strconv.ParseFloat(strings.TrimSpace(line), 64)
	return ns, err == nil && ns >= 0, err
}
