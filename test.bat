@echo off
rem Makes .venv in this folder if it is not there, and runs the tests. Options go to pytest: test.bat tests\test_settings.py
setlocal
cd /d "%~dp0"
call :find_python || exit /b 1
%FOUND% environment.py || exit /b 1
set "HF_HUB_OFFLINE=1"
set "OMP_NUM_THREADS=1"
".venv\Scripts\python.exe" -m pytest -n auto --maxprocesses 4 --dist loadfile %*
exit /b %ERRORLEVEL%

:find_python
set "FOUND="
for %%P in ("py -3.11" "py -3.12" "py -3.13" "py -3.10" "python") do (
    if not defined FOUND %%~P -c "import sys; sys.exit(sys.version_info[:2] not in [(3, 10), (3, 11), (3, 12), (3, 13)])" >nul 2>&1 && set "FOUND=%%~P"
)
if defined FOUND exit /b 0
echo No Python from 3.10 to 3.13 was found. Install Python 3.11, with its launcher "py", and run this again.
exit /b 1
