package main

import (
	"strings"

	"github.com/spf13/cobra"

	"vmscope"
	"vmscope/event"
)

// ofPaths says that a path goes on behind what is completed, and that no file of the host is meant.
const ofPaths = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace

// completePath completes targets, and then paths on their disks.
func (a *app) completePath(where *fileSystem) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeTarget(cmd, args, word)
		}
		return where.complete(cmd, args[0], "", word), ofPaths
	}
}

// complete completes a path by what is in its directory on the disk; the file system is mounted at a place.
func (f *fileSystem) complete(cmd *cobra.Command, target, at, word string) (out []string) {
	v, err := f.open(cmd, target, nil)
	if err != nil {
		return nil
	}
	defer v.Close()
	dir := word[:strings.LastIndexByte(word, '/')+1]
	if dir == "" {
		dir = "/"
	}
	list, _ := v.ReadDir("/" + strings.TrimPrefix(dir, at))
	for _, e := range list {
		name := dir + e.Name
		if e.Kind == event.Dir {
			name += "/"
		}
		if strings.HasPrefix(name, word) && harmless(name) {
			out = append(out, name)
		}
	}
	return out
}

// completeWatched completes targets, and then paths of the running guest, which lie on the file system that it has mounted there.
func (a *app) completeWatched(cmd *cobra.Command, args []string, word string) (out []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeTarget(cmd, args, word)
	}
	var where fileSystem
	best := ""
	err := vmscope.Look(cmd.Context(), args[0], func(v *vmscope.View) error {
		init, err := v.TaskByPID(1)
		if err != nil {
			return err
		}
		mounts, err := v.Mounts(init)
		for _, m := range mounts {
			at := strings.TrimSuffix(string(m.Target), "/")
			switch {
			case m.Root != "/" || m.UUID == "":
			case strings.HasPrefix(word, at+"/") || at == "" && word == "":
				if where.fs == "" || len(at) > len(best) {
					best, where.fs = at, m.UUID
				}
			case strings.HasPrefix(at, word) && harmless(at):
				out = append(out, at+"/")
			}
		}
		return err
	})
	if where.fs != "" || err != nil {
		out = append(out, where.complete(cmd, args[0], best, word)...)
	}
	return out, ofPaths
}
