package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
	"vmscope/kernel/linux"
)

func (a *app) lsmodCmd() *cobra.Command {
	return a.see("lsmod", "List the loaded kernel modules", func(v *vmscope.View) error {
		list, err := v.Modules()
		if !a.json {
			a.noteInferred(v)
		}
		return rows(a, list, err, []any{"module", "size", "base", "refs", "used by", "state", "taint"}, func(m kernel.Module) []any {
			is := known(m.Unknown)
			return []any{m.Name, m.Size, addr(m.Base), is("refs", m.Refs), is("used_by", joined(m.UsedBy, ",")), m.State, is("taint", m.Taint)}
		})
	})
}

func (a *app) dmesgCmd() *cobra.Command {
	return a.see("dmesg", "Print the kernel's log", func(v *vmscope.View) error {
		list, err := v.Log()
		return lines(a, list, err, func(r kernel.LogRecord) string {
			return fmt.Sprintf("[%5d.%06d] %s", r.Time/time.Second, r.Time%time.Second/time.Microsecond, r.Text)
		})
	})
}

func (a *app) mountCmd() *cobra.Command {
	return a.seeTask("mount", "List the mounts of the first process, or of --pid", 1, func(v *vmscope.View, t linux.Task) error {
		list, err := v.Mounts(t)
		return rows(a, list, err, []any{"target", "source", "type", "options", "super", "dev", "root", "id"}, func(m kernel.Mount) []any {
			return []any{m.Target, m.Source, m.Type, m.Options, m.SuperOptions, m.Dev, m.Root, m.ID}
		})
	})
}

func (a *app) lsofCmd() *cobra.Command {
	var pid int
	c := a.seeMore("lsof TARGET", "List open files of all processes, or of --pid", targetAnd(0), func(cmd *cobra.Command, v *vmscope.View, _ []string) error {
		files := v.AllFiles
		if cmd.Flags().Changed("pid") {
			t, err := v.TaskByPID(pid)
			if err != nil {
				return err
			}
			files = func() ([]kernel.File, error) { return v.Files(t) }
		}
		list, err := files()
		return rows(a, list, err, []any{"command", "pid", "fd", "type", "device", "offset", "inode", "name"}, func(f kernel.File) []any {
			return []any{f.Comm, f.PID, fmt.Sprintf("%d%s", f.FD, f.Mode), f.Type, f.Dev, f.Pos, f.Inode, f.Path}
		})
	})
	c.Flags().IntVar(&pid, "pid", 0, "only this process")
	return c
}

func (a *app) ssCmd() *cobra.Command {
	var tcp, udp, unix, listening bool
	c := a.see("ss", "List TCP, UDP and unix sockets with their owners", func(v *vmscope.View) error {
		all, err := v.Sockets()
		var list []kernel.Socket
		for _, s := range all {
			family := tcp && strings.HasPrefix(s.Proto, "tcp") || udp && strings.HasPrefix(s.Proto, "udp") || unix && strings.HasPrefix(s.Proto, "unix")
			if (family || !tcp && !udp && !unix) && (!listening || s.State == "LISTEN") {
				list = append(list, s)
			}
		}
		return rows(a, list, err, []any{"proto", "state", "local", "remote", "inode", "uid", "owner"}, func(s kernel.Socket) []any {
			var own []string
			for _, o := range s.Owners {
				own = append(own, fmt.Sprintf("%s(%d,fd=%d)", o.Comm, o.PID, o.FD))
			}
			return []any{s.Proto, s.State, s.Local, s.Remote, s.Inode, s.UID, strings.Join(own, " ")}
		})
	})
	f := c.Flags()
	f.BoolVarP(&tcp, "tcp", "t", false, "TCP sockets")
	f.BoolVarP(&udp, "udp", "u", false, "UDP sockets")
	f.BoolVarP(&unix, "unix", "x", false, "unix sockets")
	f.BoolVarP(&listening, "listening", "l", false, "only listening sockets")
	return c
}

func (a *app) mapsCmd() *cobra.Command {
	return a.seeTask("maps", "List the mapped areas of a process's memory", 0, func(v *vmscope.View, t linux.Task) error {
		list, err := v.Areas(t)
		return lines(a, list, err, func(m kernel.Area) string {
			return fmt.Sprintf("%08x-%08x %s %08x %s %-10d %s", uint64(m.Start), uint64(m.End), m.Perms, m.Offset, m.Dev, m.Inode, m.Path)
		})
	})
}

// variable is one line of env.
type variable struct {
	PID  int         `json:"pid"`
	Name kernel.Text `json:"name"`
	// Value is nil for an entry without "=".
	Value *kernel.Text `json:"value,omitempty"`

	text kernel.Text // all of it
}

func (a *app) envCmd() *cobra.Command {
	return a.seeTask("env", "Print the environment a process was started with", 0, func(v *vmscope.View, t linux.Task) error {
		list, err := v.Environ(t)
		vars := make([]variable, len(list))
		for i, e := range list {
			name, value, ok := strings.Cut(string(e), "=")
			vars[i] = variable{PID: t.PID, Name: kernel.Text(name), text: e}
			if ok {
				vars[i].Value = (*kernel.Text)(&value)
			}
		}
		return lines(a, vars, err, func(e variable) string { return e.text.String() })
	})
}
