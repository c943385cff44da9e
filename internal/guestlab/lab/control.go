package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"vmscope/internal/guestlab"
)

// order and result are what "lab run" and the lab process that keeps a guest say to each other, one of each a connection.
type order struct {
	Script string `json:"script,omitempty"`
	Put    string `json:"put,omitempty"` // instead: a path in the guest, for Data
	Data   []byte `json:"data,omitempty"`
}

type result struct {
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
}

// serve takes orders on a unix socket for as long as the process lives.
func serve(ctx context.Context, g *guestlab.Agent, path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answer(ctx, g, conn)
		}
	}()
	return nil
}

func answer(ctx context.Context, g *guestlab.Agent, conn net.Conn) {
	defer conn.Close()
	var o order
	if json.NewDecoder(conn).Decode(&o) != nil {
		return
	}
	var out string
	var err error
	if o.Put != "" {
		err = g.Put(ctx, o.Put, o.Data, 0o755)
	} else {
		out, err = g.Run(ctx, o.Script)
	}
	r := result{Stdout: []byte(out)}
	var exit *guestlab.ExitError
	if errors.As(err, &exit) {
		r.Status, r.Stderr = exit.Status, exit.Stderr
	} else if err != nil {
		r.Error = err.Error()
	}
	json.NewEncoder(conn).Encode(r)
}

func runIn(ctx context.Context, name, script string) error {
	return send(ctx, name, order{Script: script})
}

// putIn copies a file into a guest, to be run there.
func putIn(ctx context.Context, name, from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return send(ctx, name, order{Put: to, Data: data})
}

func send(ctx context.Context, name string, o order) error {
	s, err := find(name)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", s.Control)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // a guest may never answer
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return err
	}
	var r result
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return err
	}
	os.Stdout.Write(r.Stdout)
	os.Stderr.Write(r.Stderr)
	switch {
	case r.Error != "":
		return errors.New(r.Error)
	case r.Status != 0:
		return exitStatus(r.Status)
	}
	return nil
}

// guests lists what lab processes keep running on this machine.
func guests() []state {
	var all []state
	files, _ := filepath.Glob(filepath.Join(guestlab.RunDirs(), "*"+stateFile))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // ended meanwhile
		}
		var s state
		if json.Unmarshal(text, &s) == nil && syscall.Kill(s.Owner, 0) == nil {
			all = append(all, s)
		}
	}
	return all
}

func find(name string) (state, error) {
	for _, s := range guests() {
		if s.Name == name {
			return s, nil
		}
	}
	return state{}, fmt.Errorf("no guest %q that lab booted", name)
}

func list() error {
	for _, s := range guests() {
		fmt.Printf("%-20s pid %-8d %-15s %s\n", s.Name, s.PID, s.Kernel, filepath.Dir(s.Control))
	}
	return nil
}

// stopGuest asks the keeping process to end and waits for it, so that the name and the memory are free afterwards.
func stopGuest(name string) error {
	s, err := find(name)
	if err != nil {
		return err
	}
	if err := syscall.Kill(s.Owner, syscall.SIGTERM); err != nil {
		return err
	}
	for range 100 {
		if _, err := os.Stat(s.Control); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("guest %q has not ended yet", name)
}
