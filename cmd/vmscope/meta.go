package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"vmscope/ctype"
)

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of vmscope",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			version, goVersion := "unknown", "unknown"
			if i, ok := debug.ReadBuildInfo(); ok {
				version, goVersion = i.Main.Version, i.GoVersion
			}
			if a.json {
				return a.object(map[string]string{"version": version, "go": goVersion})
			}
			_, err := fmt.Fprintf(a.out, "vmscope %s (%s)\n", version, goVersion)
			return err
		},
	}
}

func (a *app) manCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIRECTORY",
		Short: "Write the man pages into a directory",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("man needs one DIRECTORY to write into")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "VMSCOPE", Section: "1", Source: "vmscope", Manual: "vmscope"}, args[0])
		},
	}
}

func (a *app) printType(t ctype.Type) error {
	if !a.json {
		return t.Print(a.out)
	}
	type member struct {
		Name   string `json:"name,omitempty"`
		Type   string `json:"type"`
		Offset uint64 `json:"offset"`
		Size   uint64 `json:"size"`
		Bit    uint8  `json:"bit,omitempty"`
		Bits   uint8  `json:"bits,omitempty"`
	}
	row := struct {
		Name    string   `json:"name"`
		Kind    string   `json:"kind"`
		Size    uint64   `json:"size"`
		Members []member `json:"members,omitempty"`
	}{Name: t.Name(), Kind: t.Kind().String(), Size: t.Size()}
	for m := range t.Members() {
		row.Members = append(row.Members, member{m.Name, m.Type.String(), m.Offset, m.Size(), m.BitOffset, m.BitSize})
	}
	return a.object(row)
}
