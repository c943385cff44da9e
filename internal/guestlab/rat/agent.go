package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vmscope/internal/guestlab/wire"
)

// port is a virtio-serial port. It is read with blocking system calls: an idle agent sleeps in the kernel, wakes
// nobody, and so leaves the guest as quiet as a test wants it.
type port struct{ fd int }

// Read returns no byte as long as the host has not opened its end, so it looks again now and then.
func (p port) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(p.fd, b)
		switch {
		case n > 0:
			return n, nil
		case err == syscall.EINTR:
		case err != nil:
			return 0, err
		default:
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (p port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := syscall.Write(p.fd, b[done:])
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// openPort opens the virtio-serial port of a name, or, where the name is a path, a terminal.
func openPort(name string) (port, error) {
	if strings.HasPrefix(name, "/") {
		return openTerminal(name)
	}
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, file := range names {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(text)) != name {
			continue
		}
		fd, err := syscall.Open("/dev/"+filepath.Base(filepath.Dir(file)), syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		return port{fd}, err
	}
	return port{}, fmt.Errorf("no virtio-serial port named %q", name)
}

// server answers calls, several at a time.
type server struct {
	out   sync.Mutex // guards the port's writing side
	port  port
	mu    sync.Mutex
	calls map[uint64]*call
}

type call struct {
	reply    []byte // nil while running
	kill     func() // nil if there is nothing to kill
	canceled bool   // the host waits no more
}

// agent serves the host on the port of the lab, or on another that is named.
func agent(args []string) error {
	name := wire.PortName
	if len(args) > 0 {
		name = args[0]
	}
	p, err := openPort(name)
	if err != nil {
		return err
	}
	if name[0] == '/' {
		p.Write([]byte(wire.Listening)) // a terminal keeps nothing of what was sent before
	}
	s := &server{port: p, calls: map[uint64]*call{}}
	r := bufio.NewReaderSize(p, 64<<10)
	for {
		f, err := wire.ReadFrame(r)
		if errors.Is(err, wire.ErrDamaged) {
			continue // the host repeats what is not answered
		}
		if err != nil {
			return err
		}
		s.handle(f)
	}
}

func (s *server) handle(f wire.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.calls[f.ID]
	switch f.Kind {
	case wire.Done:
		delete(s.calls, f.ID)
	case wire.Cancel:
		if c == nil {
			break
		}
		c.canceled = true
		if c.kill != nil {
			c.kill()
		}
		if c.reply != nil {
			delete(s.calls, f.ID)
		}
	case wire.Call:
		switch {
		case c == nil:
			c = &call{}
			s.calls[f.ID] = c
			go s.serve(f, c)
		case c.reply != nil:
			go s.send(f.ID, c.reply)
		}
	}
}

func (s *server) serve(f wire.Frame, c *call) {
	var req wire.Request
	var reply wire.Reply
	err := json.Unmarshal(f.Payload, &req)
	if err == nil {
		reply, err = s.perform(&req, c)
	}
	if err != nil {
		reply = wire.Reply{Status: 255, Stderr: []byte(err.Error())}
	}
	encoded := reply.Encode()
	s.mu.Lock()
	c.reply, c.kill = encoded, nil
	if c.canceled {
		delete(s.calls, f.ID)
	}
	canceled := c.canceled
	s.mu.Unlock()
	if !canceled {
		s.send(f.ID, encoded)
	}
}

func (s *server) send(id uint64, reply []byte) {
	s.out.Lock()
	defer s.out.Unlock()
	// A failed write is not reported to anyone: the host asks again.
	wire.WriteFrame(s.port, wire.Frame{Kind: wire.Result, ID: id, Payload: reply})
}

func (s *server) perform(req *wire.Request, c *call) (wire.Reply, error) {
	switch {
	case req.Script != nil:
		return s.script(req.Script, c)
	case req.Oracle != nil:
		out, err := oracleBytes(req.Oracle)
		return wire.Reply{Stdout: out}, err
	case req.Spawn != nil:
		pid, err := spawn(req.Spawn)
		return wire.Reply{Stdout: []byte(strconv.Itoa(pid))}, err
	case req.Put != nil:
		return wire.Reply{}, put(req.Put)
	case req.Mounting != nil:
		return wire.Reply{}, mounting(req.Mounting)
	case req.FSOps != nil:
		out, err := fsops(req.FSOps)
		return wire.Reply{Stdout: out}, err
	case req.FSTree != nil:
		out, err := fstree(req.FSTree)
		return wire.Reply{Stdout: out}, err
	case req.Load != nil:
		took, err := load(req.Load)
		return wire.Reply{Stdout: []byte(strconv.FormatInt(took.Nanoseconds(), 10))}, err
	}
	return wire.Reply{}, errors.New("empty request")
}

// script runs a shell script. Output goes to files, not pipes: a process that the script leaves behind would hold a pipe
// open and the call would never end.
func (s *server) script(text []byte, c *call) (wire.Reply, error) {
	var out [2]*os.File
	for i := range out {
		f, err := os.CreateTemp("", "run-")
		if err != nil {
			return wire.Reply{}, err
		}
		defer f.Close()
		os.Remove(f.Name())
		out[i] = f
	}
	cmd := exec.Command("/bin/sh", "-s")
	cmd.Stdin = bytes.NewReader(text)
	if len(text) < 64<<10 { // as an argument a script can use its own stdin; the kernel limits one argument to 128 KiB
		cmd = exec.Command("/bin/sh", "-c", string(text))
	}
	cmd.Dir = "/root"
	cmd.Stdout, cmd.Stderr = out[0], out[1]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return wire.Reply{}, err
	}
	s.mu.Lock()
	c.kill = func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if c.canceled { // before there was a process
		c.kill()
	}
	s.mu.Unlock()
	err := cmd.Wait()
	var reply wire.Reply
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		reply.Status = exitStatus(exit.Sys().(syscall.WaitStatus))
	} else if err != nil {
		return reply, err
	}
	for i, dst := range []*[]byte{&reply.Stdout, &reply.Stderr} {
		if *dst, err = contents(out[i]); err != nil {
			return reply, err
		}
	}
	return reply, nil
}

func contents(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return nil, err
	}
	return data, nil
}

func exitStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func put(p *wire.Put) error {
	if err := os.MkdirAll(filepath.Dir(p.Path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(p.Path, p.Data, os.FileMode(p.Mode)); err != nil {
		return err
	}
	return os.Chmod(p.Path, os.FileMode(p.Mode)) // whatever the umask
}
