package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/kernel"
)

func (a *app) lsmodCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "lsmod TARGET",
		Short: "List the loaded kernel modules",
		Args:  targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				list, err := v.Modules()
				return rows(a, list, err, []any{"module", "size", "base", "refs", "used by", "state", "taint"}, func(m kernel.Module) []any {
					return []any{m.Name, m.Size, addr(m.Base), m.Refs, joined(m.UsedBy, ","), m.State, m.Taint}
				})
			})
		},
	}
}

func (a *app) dmesgCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "dmesg TARGET",
		Short: "Print the kernel's log",
		Args:  targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				list, err := v.Log()
				if a.json {
					return rows(a, list, err, nil, nil)
				}
				for _, r := range list {
					fmt.Fprintf(a.out, "[%5d.%06d] %s\n", r.Time/time.Second, r.Time%time.Second/time.Microsecond, r.Text)
				}
				return err
			})
		},
	}
}

func (a *app) mountCmd() *cobra.Command {
	var pid int
	c := &cobra.Command{
		Use:   "mount TARGET",
		Short: "List the mounts of the first process, or of --pid",
		Args:  targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				t, err := v.TaskByPID(pid)
				if err != nil {
					return err
				}
				list, err := v.Mounts(t)
				return rows(a, list, err, []any{"target", "source", "type", "options", "super", "dev", "root", "id"}, func(m kernel.Mount) []any {
					return []any{m.Target, m.Source, m.Type, m.Options, m.SuperOptions, m.Dev, m.Root, m.ID}
				})
			})
		},
	}
	c.Flags().IntVar(&pid, "pid", 1, "process whose mount namespace is shown")
	return c
}

func (a *app) lsofCmd() *cobra.Command {
	var pid int
	c := &cobra.Command{
		Use:   "lsof TARGET",
		Short: "List open files of all processes, or of --pid",
		Args:  targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				var list []kernel.File
				var err error
				if cmd.Flags().Changed("pid") {
					t, terr := v.TaskByPID(pid)
					if terr != nil {
						return terr
					}
					list, err = v.Files(t)
				} else {
					list, err = v.AllFiles()
				}
				return rows(a, list, err, []any{"command", "pid", "fd", "type", "device", "offset", "inode", "name"}, func(f kernel.File) []any {
					return []any{f.Comm, f.PID, fmt.Sprintf("%d%s", f.FD, f.Mode), f.Type, f.Dev, f.Pos, f.Inode, f.Path}
				})
			})
		},
	}
	c.Flags().IntVar(&pid, "pid", 0, "only this process")
	return c
}

func (a *app) ssCmd() *cobra.Command {
	var tcp, udp, unix, listening bool
	c := &cobra.Command{
		Use:   "ss TARGET",
		Short: "List TCP, UDP and unix sockets with their owners",
		Args:  targetAnd(0), ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.view(cmd, args[0], func(v *vmscope.View) error {
				all, err := v.Sockets()
				var list []kernel.Socket
				for _, s := range all {
					fam := tcp && strings.HasPrefix(s.Proto, "tcp") || udp && strings.HasPrefix(s.Proto, "udp") || unix && strings.HasPrefix(s.Proto, "unix")
					if (fam || !tcp && !udp && !unix) && (!listening || s.State == "LISTEN") {
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
		},
	}
	f := c.Flags()
	f.BoolVarP(&tcp, "tcp", "t", false, "TCP sockets")
	f.BoolVarP(&udp, "udp", "u", false, "UDP sockets")
	f.BoolVarP(&unix, "unix", "x", false, "unix sockets")
	f.BoolVarP(&listening, "listening", "l", false, "only listening sockets")
	return c
}
